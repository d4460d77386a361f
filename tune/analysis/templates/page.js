// Draws the page's charts with the library that the page carries, in the colours of the reader's scheme.
(async () => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const at = id => document.getElementById("chart-" + id);
  try {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent.trim()), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const library = document.createElement("script");
    library.textContent = await new Response(stream).text();
    document.head.append(library);
  } catch (error) {
    for (const id of Object.keys(charts)) {
      at(id).innerHTML = '<p class="missing">This browser cannot draw the chart; its numbers are in the tables.</p>';
    }
    return;
  }

  const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
  const brightness = parts => {
    const [r, g, b] = parts.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  // A method's colour, lightened only where it could not be told from a dark background.
  const visible = (hex, back) => {
    let parts = rgb(hex);
    const behind = brightness(rgb(back));
    for (let step = 0; step < 12; step += 1) {
      const [low, high] = [behind, brightness(parts)].sort((a, b) => a - b);
      if (behind > 0.5 || (high + 0.05) / (low + 0.05) >= 3) break;
      parts = parts.map(v => Math.round(v + 0.12 * (255 - v)));
    }
    const alpha = hex.length === 9 ? parseInt(hex.slice(7), 16) / 255 : 1;
    return `rgba(${parts.join(",")},${alpha.toFixed(3)})`;
  };
  const coloured = (value, theme) => {
    if (typeof value === "string") {
      if (value in theme) return theme[value];
      return /^#([0-9a-f]{6}|[0-9a-f]{8})$/i.test(value) ? visible(value, theme.$back) : value;
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(one => coloured(one, theme));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, theme)]));
  };
  const theme = () => {
    const style = getComputedStyle(root);
    const names = ["text", "soft", "back", "panel", "line"];
    return Object.fromEntries(names.map(name => ["$" + name, style.getPropertyValue("--" + name).trim()]));
  };
  const axis = { gridcolor: "$line", zerolinecolor: "$soft", linecolor: "$line", tickcolor: "$line" };
  const layout = own => {
    const axes = Object.keys(own).filter(key => /^[xy]axis\d*$/.test(key));
    const base = {
      paper_bgcolor: "$back", plot_bgcolor: "$back", font: { color: "$text", size: 13, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: "$panel", bordercolor: "$line", font: { color: "$text", size: 13 }, namelength: -1, align: "left" },
      autosize: true, ...own,
    };
    for (const key of axes) base[key] = { ...axis, ...own[key] };
    return base;
  };
  const config = {
    responsive: true, displaylogo: false, doubleClick: "reset",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  };
  const draw = () => {
    const now = theme();
    return Promise.all(Object.entries(charts).map(([id, chart]) =>
      Plotly.react(at(id), coloured(chart.data, now), coloured(layout(chart.layout), now), config)));
  };
  await draw();
  root.dataset.drawn = Object.keys(charts).length;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const paper = on => { root.classList.toggle("print", on); draw(); };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
})();
