"""What holds for the project as a whole: who may import whom, what is public, what the package holds."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for folder in ("leebert", "tune") for p in (ROOT / folder).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def ids(path):
    return str(path.relative_to(ROOT))


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(tree):
    """Every module that a file names in an import, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("path", [p for p in MODULES if "leebert" in p.relative_to(ROOT).parts[0]], ids=ids)
def test_no_file_of_leebert_names_ray_mlflow_optuna_or_tune(path):
    roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not roots & {"ray", "mlflow", "optuna", "tune"}


@pytest.mark.slow
def test_all_of_leebert_imports_without_ray_mlflow_or_optuna():
    names = [dotted(p) for p in MODULES if p.is_relative_to(ROOT / "leebert") and p.stem != "__main__"]
    code = (
        f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\n"
        "import leebert\nfor n in leebert.__all__: getattr(leebert, n)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'ray', 'mlflow', 'optuna', 'tune'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_searchers_pruners_and_cross_validation_know_no_ray():
    packages = {"store", "space", "analysis", "searchers", "pruners"}
    files = [p for p in MODULES if p.parent.name in packages]
    files += [ROOT / "tune" / "running" / f"{n}.py" for n in ("crossval", "driver")]
    for path in files:
        roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert not roots & {"ray", "mlflow"}, path


def test_import_mlflow_from_the_repository_is_the_real_package():
    code = "import mlflow; print(mlflow.__version__, mlflow.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split()
    assert version.startswith("3.")
    assert "site-packages" in file


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_every_module_says_what_it_is(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert text.split("\n\n")[0].strip().endswith((".", ":", "!")), "a docstring's first paragraph is a sentence"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_no_module_names_a_place_on_one_machine(path):
    assert not re.findall(r"""["'\s(=](/(?:home|work|root|tmp|Users|mnt|data|opt|srv)/[^\s"']*)""", path.read_text())


def test_only_the_kinds_ask_whether_a_task_has_texts_or_images():
    """Every other module asks the task's kind (`leebert.kinds`)."""
    tables = {"leebert/data/tasks.py", "leebert/data/folds.py"}  # a text task by name; the columns that group texts
    asking = {
        ids(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and {getattr(n, "id", "") for n in ast.walk(node.args[1])} & {"ImageTask", "Task"}
    }
    assert {path for path in asking if not path.startswith("leebert/kinds/")} <= tables
    naming = {ids(path) for path in MODULES if "ImageTask" in path.read_text()}
    assert {path for path in naming if not path.startswith(("leebert/kinds/", "leebert/images/"))} == {
        "leebert/data/tasks.py"
    }


#: Lines of a function's body, its docstring not counted, that a person reads in one sitting.
MOST_LINES = 60


def test_functions_of_leebert_are_short():
    long = []
    for path in (p for p in MODULES if p.is_relative_to(ROOT / "leebert")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1 if ast.get_docstring(node) else 0 :] or node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                if lines > MOST_LINES:
                    long.append(f"{ids(path)}: {node.name} has {lines} lines; split it into functions that have one task each")
    assert not long


def test_gradients_of_training_are_taken_in_one_file():
    """No method, task or program has a training loop of its own."""
    assert [ids(path) for path in MODULES if ".backward(" in path.read_text()] == ["leebert/level.py"]


def test_public_names_resolve():
    import leebert

    assert sorted(leebert.__all__) == sorted(leebert._WHERE)
    assert len(set(leebert.__all__)) == len(leebert.__all__)
    for name in leebert.__all__:
        assert getattr(leebert, name) is not None
    assert set(leebert.__all__) <= set(dir(leebert))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        leebert.nothing  # noqa: B018


def test_the_declared_packages_are_those_that_exist():
    real = {dotted(p) for p in MODULES if p.name == "__init__.py"}
    assert {dotted(p.parent / "__init__.py") for p in MODULES} == real, "a folder of modules without __init__.py"
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == real
    for package in PROJECT["tool"]["setuptools"]["package-data"]:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_every_console_script_runs(script):
    module, function = PROJECT["project"]["scripts"][script].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    installed = Path(sys.executable).parent / script
    done = subprocess.run([installed, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert not done.stderr
