"""The documents say what is so: the README's map and commands, every shipped search space, no dead link."""

import ast
import functools
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from leebert.errors import ConfigError
from leebert.tables import documents, rendered
from leebert.yaml import load_yaml
from tune.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAPER = (ROOT / "docs" / "paper.md").read_text()
CLAIM = re.compile(r"[Ee]q\. (\d+)|[Aa]lgorithm (\d)")


def claims_in(text):
    return {f"eq. {e}" if e else f"algorithm {a}" for e, a in CLAIM.findall(text)}


def claimants():
    """Every equation and algorithm that a docstring claims in its first words → who claims it."""
    found = {}
    for path in sorted((ROOT / "leebert").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = (ast.get_docstring(node) or "").split("\n")[0]
                if first.startswith("Eq. "):
                    for claim in claims_in(re.split(r"[:,]\s(?!algorithm)", first)[0].replace("Eq.", "eq.")):
                        found.setdefault(claim, []).append(f"{module}.{node.name}")
    return found


def table():
    """The rows of docs/paper.md that name an equation or an algorithm → its function."""
    rows = {}
    for line in PAPER.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 3 and claims_in(cells[0]):
            for claim in claims_in(cells[0]):
                rows[claim] = cells[2].strip("`")
    return rows


def test_every_equation_and_algorithm_is_claimed_once_and_is_in_the_map():
    assert {claim: [function] for claim, function in table().items()} == claimants()
    # Eq. 6 only states the constrained problem that 7-9 solve.
    assert set(table()) == {f"eq. {n}" for n in (1, 2, 3, 4, 5, 7, 8, 9)} | {"algorithm 1", "algorithm 2"}


def exists(name):
    """Whether a dotted name is a module, or what one holds."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(lambda held, part: getattr(held, part, None), parts[cut:], value) is not None
    return False


def test_every_name_in_the_readme_exists():
    names = re.findall(r"`((?:leebert|tune)\.[\w.]+)`", README + PAPER)
    assert names
    assert [name for name in names if not exists(name)] == []


def test_the_readme_is_a_page_that_is_read_to_its_end():
    """Under 1,000 words, no table of more than ten rows, and a picture before the first section."""
    assert len(README.split()) < 1000
    tables = re.findall(r"(?:^\|.*\n)+", README, re.M)
    assert max((len(table.splitlines()) - 2 for table in tables), default=0) <= 10
    assert "![" in README.partition("\n## ")[0]


def commands():
    for path in (
        ROOT / "README.md",
        ROOT / "search_spaces" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs" / "results").glob("*.md")),
    ):
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("|"):
                    words = shlex.split(part, comments=True)
                    words = words[next((i for i, w in enumerate(words) if "=" not in w), 0) :]
                    if words and words[0] in ("leebert", "leebert-tune", "make"):
                        yield path.name, words


def test_every_command_in_the_documents_parses():
    import typer

    from leebert import cli as leebert_cli
    from tune import cli as tune_cli

    groups = {"leebert": typer.main.get_command(leebert_cli.app), "leebert-tune": typer.main.get_command(tune_cli.app)}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    parsed, wrong = 0, []
    for page, words in commands():
        try:
            if words[0] == "make":
                assert words[1] in targets
            else:  # unknown options and missing arguments raise
                groups[words[0]].commands[words[1]].make_context(words[1], list(words[2:]))
        except Exception as error:
            wrong.append(f"{page}: {' '.join(words)}: {error!r}")
        parsed += 1
    assert wrong == []
    assert parsed > 20


KEPT = ROOT / "docs" / "results" / "reproduced"


@pytest.mark.slow
def test_the_kept_tables_are_what_the_documents_commands_make_of_the_kept_results(tmp_path, monkeypatch):
    """All in their order, on a copy, without training: each is accepted, and in the end nothing has changed."""
    monkeypatch.setenv("LEEBERT_DATA", str(tmp_path))
    copy = tmp_path / "reproduced"
    shutil.copytree(KEPT, copy)
    text = (ROOT / "docs" / "results" / "methods.md").read_text()
    from typer.testing import CliRunner

    from tune.cli import app

    ran = 0
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:2] == ["leebert-tune", "reproduce"]:
                words += ["--out", str(copy), *(["--no-run"] if "--no-run" not in words else [])]
                result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
                assert result.exit_code == 0, line
                ran += 1
    assert ran
    for path in sorted(KEPT.iterdir()):
        if path.suffix in (".md", ".csv", ".tex"):
            assert (copy / path.name).read_text() == path.read_text(), path.name


@pytest.mark.slow
def test_the_library_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.S).group(1)
    exec(compile(code, "library.md", "exec"), {})
    assert "Point(criterion='entropy'" in capsys.readouterr().out


def test_a_commit_runs_the_commands_of_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    (repository,) = load_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = [(hook["language"], hook["entry"], hook["pass_filenames"]) for hook in repository["hooks"]]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert hooks == [("system", command, False) for command in commands]


def test_the_tables_of_the_documents_are_those_of_the_registries():
    """`make tables` writes them."""
    texts = {path: path.read_text() for path in documents(ROOT)}
    assert "<!-- methods:begin -->" in texts[ROOT / "docs" / "methods.md"]
    assert "<!-- pruners:begin -->" in texts[ROOT / "search_spaces" / "README.md"]
    for path, text in texts.items():
        assert rendered(text, path.name, TABLES) == text, f"{path.name}: run make tables"
    with pytest.raises(ConfigError, match=r"here: table 'nothing' does not exist; use one of methods, "):
        rendered("<!-- nothing:begin -->\n<!-- nothing:end -->", "here")


def test_no_link_is_dead():
    pages = sorted([ROOT / "README.md", *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md")])
    link = re.compile(r"\]\((?!https?:)([^)#]+)\)")
    links = [(path, target) for path in pages for target in link.findall(path.read_text())]
    assert len(links) > 20
    assert [
        f"{path.relative_to(ROOT)}: {target}" for path, target in links if not (path.parent / target).exists()
    ] == []
