"""What holds for the project as a whole: who may import whom, what is public, what the package holds."""

import ast
import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for folder in ("leebert", "tune") for p in (ROOT / folder).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in MODULES}


def ids(path):
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def imported(tree):
    """Every module that a file names in an import: at its top, inside a function, or for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


#: Module → the modules of the repository that it imports.
IMPORTS = {
    dotted(path): {name for name in imported(tree_of(path)) if name in NAMES and name != dotted(path)}
    for path in MODULES
}

#: The packages of `tune`, the highest first. Each imports only those of later lines, and all of them `leebert`.
#: docs/decisions/ladder.md says why in this order.
LADDER = (
    ("__main__", "demo"),
    ("cli",),
    ("reproduce",),
    ("models",),
    ("running",),
    ("tracking",),
    ("analysis",),
    ("searchers", "pruners"),
    ("store", "machines"),
    ("space",),
)

#: Circles that are still to be removed; no other may be added.
CIRCLES = {
    frozenset({"leebert.config", "leebert.methods"}),
    frozenset({"leebert.compatibility", "leebert.model"}),
    frozenset({"leebert.evaluate", "leebert.tradeoff"}),
    frozenset({"leebert.optim", *(f"leebert.optim.{name}" for name in ("blo", "clo", "fixed", "hyper", "slo"))}),
}


def circles(imports):
    """The sets of modules that import each other, directly or through others (Tarjan, 1972)."""
    index, low, path, done = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        path.append(module)
        for other in imports[module]:
            if other not in index:
                visit(other)
            if other in path:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            at = path.index(module)
            done.append(frozenset(path[at:]))
            del path[at:]

    for module in imports:
        if module not in index:
            visit(module)
    return {found for found in done if len(found) > 1}


def test_no_modules_import_each_other_in_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset({"b", "c"})}
    assert circles(IMPORTS) <= CIRCLES


def package(module):
    return module.split(".")[1]


def test_packages_of_tune_import_only_those_below_them():
    rank = {name: place for place, names in enumerate(LADDER) for name in names}
    assert {package(module) for module in IMPORTS if module.startswith("tune.")} == rank.keys()
    upwards = [
        f"{module} imports {other}"
        for module, others in sorted(IMPORTS.items())
        for other in sorted(others)
        if module.startswith("tune.") and other.startswith("tune.") and package(module) != package(other)
        if rank[package(other)] <= rank[package(module)]
    ]
    assert upwards == []


def importers(paths, forbidden):
    """The imports in these files of a forbidden package: which file names which module."""
    return sorted({(ids(p), name) for p in paths for name in imported(tree_of(p)) if name.split(".")[0] in forbidden})


def test_no_file_of_leebert_names_ray_mlflow_optuna_or_tune():
    paths = [p for p in MODULES if p.is_relative_to(ROOT / "leebert")]
    assert len(paths) > 50
    assert importers(paths, {"ray", "mlflow", "optuna", "tune"}) == []


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
    assert importers(files, {"ray", "mlflow"}) == []


def test_import_mlflow_from_the_repository_is_the_real_package():
    """The folder mlflow/ at the top of the checkout is no package that an import from there would take."""
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parts[-3:] == ("site-packages", "mlflow", "__init__.py")
    assert importlib.metadata.version("mlflow").startswith("3.")


def test_every_module_says_what_it_is_in_a_sentence():
    first = {ids(path): (ast.get_docstring(tree_of(path)) or "").split("\n\n")[0].strip() for path in MODULES}
    assert {path: text for path, text in first.items() if not text.endswith((".", ":", "!"))} == {}


def test_no_module_names_a_place_on_one_machine():
    place = re.compile(r"""["'\s(=](/(?:home|work|root|tmp|Users|mnt|data|opt|srv)/[^\s"']*)""")
    assert {ids(path): places for path in MODULES if (places := place.findall(path.read_text()))} == {}


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
    assert set(find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])) == real
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
