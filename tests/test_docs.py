"""The documents say what is so: the README's map and commands, every shipped search space, no dead link."""

import ast
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
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
    """The README's rows that name an equation or an algorithm → its function."""
    rows = {}
    for line in README.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 3 and claims_in(cells[0]):
            for claim in claims_in(cells[0]):
                rows[claim] = cells[2].strip("`")
    return rows


def test_every_equation_and_algorithm_is_claimed_once_and_stands_in_the_readme():
    assert {claim: [function] for claim, function in table().items()} == claimants()
    # Eq. 6 only states the constrained problem that 7-9 solve.
    assert set(table()) == {f"eq. {n}" for n in (1, 2, 3, 4, 5, 7, 8, 9)} | {"algorithm 1", "algorithm 2"}


@pytest.mark.parametrize("name", re.findall(r"`((?:leebert|tune)\.[\w.]+)`", README))
def test_every_name_in_the_readme_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return
    pytest.fail(name)


def commands():
    for path in (
        ROOT / "README.md",
        ROOT / "search_spaces" / "README.md",
        ROOT / "docs" / "reproducing.md",
        *sorted((ROOT / "docs" / "results").glob("*.md")),
    ):
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("|"):
                    words = shlex.split(part, comments=True)
                    words = words[next((i for i, w in enumerate(words) if "=" not in w), 0) :]
                    if words and words[0] in ("leebert", "leebert-tune", "make"):
                        yield pytest.param(words, id=" ".join(words)[:70])


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_in_the_documents_parses(words):
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets
        return
    import typer

    app = importlib.import_module({"leebert": "leebert.cli", "leebert-tune": "tune.cli"}[words[0]]).app
    group = typer.main.get_command(app)
    command = group.commands[words[1]]
    command.make_context(words[1], list(words[2:]))  # unknown options and missing arguments raise


KEPT = ROOT / "docs" / "results" / "reproduced"


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
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    exec(compile(code, "README.md", "exec"), {})
    assert "Point(criterion='entropy'" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/*.md")]), ids=str)
def test_no_link_is_dead(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
