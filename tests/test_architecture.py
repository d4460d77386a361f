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

from leebert.exits import CRITERIA
from leebert.metrics import METRICS

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


@functools.cache
def nodes_of(path):
    """All nodes of a file's tree: several tests look at them."""
    return tuple(ast.walk(tree_of(path)))


def imported(nodes):
    """Every module that a file names in an import: at its top, inside a function, or for type checkers only."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


#: Module → the modules of the repository that it imports.
IMPORTS = {
    dotted(path): {name for name in imported(nodes_of(path)) if name in NAMES and name != dotted(path)}
    for path in MODULES
}

#: The packages of `tune`, the highest first. Each imports only those of later lines, and all of them `leebert`.
#: docs/decisions/ladder.md says why in this order.
LADDER = (
    ("__main__", "demo", "tables", "testing"),
    ("cli",),
    ("reproduce", "serve"),
    ("models",),
    ("running",),
    ("tracking",),
    ("analysis",),
    ("searchers", "pruners"),
    ("store", "machines"),
    ("space",),
)


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
    assert circles(IMPORTS) == set()


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


#: The modules of `leebert` in layers, the lowest first: each imports only those of its own layer and of earlier ones.
#: `data.*` stands for the package `data` and all its modules, unless a module is listed itself.
LAYERS = {
    "names, options, measures and exit criteria": (
        "errors", "deprecated", "live", "plugin_checks", "plugins", "outside", "standard_options", "files", "yaml", "numerics", "metrics.*", "exits.*", "methods", "methods.method",
        "methods.common", "training_options", "config", "findings", "overrides", "runtime",
        "record", "losses", "weights", "omega", "points", "majority", "optim", "optim.outer",
    ),
    "data": ("data.*", "images", "images.tasks", "images.backbones", "images.sources", "images.arrays"),
    "networks": (
        "model_config", "registration", "saved", "backbone", "backbone_files", "compatibility", "padding", "dropout", "norms", "equilibrium",
        "slim.*", "model", "images.preprocess", "images.resnet",
    ),
    "exiting early": ("inference", "evaluate", "tradeoff", "thresholds", "operating_point", "milliseconds", "latency"),
    "exported models": ("windows", "predictor_options", "request", "exported.*"),
    "training": (
        "objective", "optim.*", "look_ahead", "stages", "students", "transforms", "methods.*", "level", "checkpoint",
        "train", "operations", "memory",
    ),
    "public names": ("",),
    "kinds of tasks": (
        "problem", "predict", "predictor", "prediction_files", "one_text", "images.problem", "images.predict", "kinds.*", "training_data", "provenance", "submission",
        "console", "text_chart", "tables",
    ),
    "training, evaluating and serving a model of a folder": ("recipe", "report", "card", "calibration", "serving", "export.*"),
    "contracts of plugins": ("testing.*",),
    "commands": ("cli", "cli_options", "starter"),
}  # fmt: skip


def layer(module):
    """The place of a module of `leebert` in :data:`LAYERS`."""
    name = module.removeprefix("leebert").removeprefix(".")
    parents = [f"{name.rsplit('.', depth)[0]}.*" for depth in range(1, name.count(".") + 1)]
    for key in (name, f"{name}.*", *parents):
        for place, names in enumerate(LAYERS.values()):
            if key in names:
                return place
    raise AssertionError(f"{module} stands in no layer of LAYERS")


def test_modules_of_leebert_import_only_their_layer_and_those_below():
    own = {module: others for module, others in IMPORTS.items() if module.split(".")[0] == "leebert"}
    listed = {key.removesuffix(".*") for names in LAYERS.values() for key in names}
    assert {key for key in listed if f"leebert.{key}".rstrip(".") not in own} == set()
    names = list(LAYERS)
    upwards = [
        f"{module} ({names[layer(module)]}) imports {other} ({names[layer(other)]})"
        for module, others in sorted(own.items())
        for other in sorted(others)
        if layer(other) > layer(module)
    ]
    assert upwards == []


def importers(paths, forbidden):
    """The imports in these files of a forbidden package: which file names which module."""
    return sorted({(ids(p), name) for p in paths for name in imported(nodes_of(p)) if name.split(".")[0] in forbidden})


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
    files += [
        ROOT / "tune" / "running" / f"{n}.py"
        for n in ("crossval", "driver", "driver_records", "attempts", "conclusions", "stopping")
    ]
    assert importers(files, {"ray", "mlflow"}) == []


def test_import_mlflow_from_the_repository_is_the_real_package():
    """The folder mlflow/ at the top of the checkout is no package that an import from there would take."""
    assert not (ROOT / "mlflow" / "__init__.py").exists()
    code = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parts[-3:] == ("site-packages", "mlflow", "__init__.py")
    assert importlib.metadata.version("mlflow").startswith("3.")


def test_every_module_describes_itself_in_a_sentence():
    first = {ids(path): (ast.get_docstring(tree_of(path)) or "").split("\n\n")[0].strip() for path in MODULES}
    assert {path: text for path, text in first.items() if not text.endswith((".", ":", "!"))} == {}


#: Modules that people outside the project call, beside those of `leebert.__all__`: the interfaces of plugins, and their
#: contract tests.
INTERFACES = (
    "leebert.exits.criterion",
    "leebert.methods.method",
    "leebert.metrics.metric",
    "leebert.optim.contract",
    "leebert.plugins",
    "tune.pruners",
    "tune.pruners.places",
    "tune.searchers",
    "tune.space.plugins",
    "tune.store.history",
    "tune.testing",
)


def public_modules():
    """The names of the modules that people outside the project call."""
    import leebert

    modules = {*INTERFACES, *(f"leebert.{module}" for module in leebert._MODULES.values())}
    assert modules <= NAMES
    return modules | {name for name in NAMES if name.startswith("leebert.testing.")}


def public_functions(tree, prefix=""):
    """Each public function and method of a syntax tree, with its dotted name; not tests, which pytest calls."""
    for node in tree.body:
        if getattr(node, "name", "_").startswith(("_", "test_")):
            continue
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from public_functions(node, f"{prefix}{node.name}.")


def parameters(node):
    """The names of a function's parameters, without `self` and `cls`."""
    every = (*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg)
    return [arg.arg for arg in every if arg is not None and arg.arg not in ("self", "cls")]


def undescribed(node):
    """The parameters that the section `Args:` lacks; none for a function of one parameter without that section."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", ast.get_docstring(node) or "", re.M)
    described = set(re.findall(r"^    \**(\w+):", section[1], re.M)) if section else set()
    return [name for name in parameters(node) if name not in described] if section or len(parameters(node)) > 1 else []


def without_raises(node):
    """`Raises:`, if a function raises and its docstring lacks that section."""
    raising = any(isinstance(inner, ast.Raise) and inner.exc for inner in ast.walk(node))
    return ["Raises:"] if raising and "Raises:" not in (ast.get_docstring(node) or "") else []


def test_docstrings_of_public_functions_describe_parameters_and_errors():
    """`Args:` has every parameter, where there are several; `Raises:` is there where an error is raised."""
    modules = public_modules()
    functions = [
        (f"{module}.{name}", node)
        for path in MODULES
        if (module := dotted(path)) in modules
        for name, node in public_functions(tree_of(path))
    ]
    assert len(functions) > 100
    missing = {name: [*undescribed(node), *without_raises(node)] for name, node in functions}
    assert {name: sections for name, sections in missing.items() if sections} == {}


def made_from(node):
    """The parameters of a class: those of `__init__`, or the fields of a dataclass."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return parameters(inner)
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    fields = [inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign)]
    return [name for name in fields if not name.startswith("_")]


def test_docstrings_of_public_classes_describe_parameters_and_fields():
    modules = public_modules()
    classes = [
        (f"{dotted(path)}.{node.name}", node)
        for path in MODULES
        if dotted(path) in modules
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and len(made_from(node)) > 1
    ]
    assert len(classes) > 15
    described = {name: re.findall(r"^    \**(\w+)\b.*?:", ast.get_docstring(node), re.M) for name, node in classes}
    missing = {name: [field for field in made_from(node) if field not in described[name]] for name, node in classes}
    assert {name: fields for name, fields in missing.items() if fields} == {}


def test_docstrings_of_many_parameters_describe_each():
    """From three parameters on, everywhere; options of commands have a help text, interfaces their own docstring."""
    missing = {
        f"{dotted(path)}.{name}": undescribed(node)
        for path in MODULES
        if path.name != "cli.py"
        for name, node in public_functions(tree_of(path))
        if ast.get_docstring(node) and len(parameters(node)) > 2
    }
    assert len(missing) > 200
    assert {name: names for name, names in missing.items() if names} == {}


def test_no_module_names_a_place_on_one_machine():
    place = re.compile(r"""["'\s(=](/(?:home|work|root|tmp|Users|mnt|data|opt|srv)/[^\s"']*)""")
    assert {ids(path): places for path in MODULES if (places := place.findall(path.read_text()))} == {}


def test_only_the_kinds_ask_whether_a_task_has_texts_or_images():
    """Every other module asks the task's kind (`leebert.kinds`)."""
    tables = {"leebert/data/tasks.py", "leebert/data/folds.py"}  # a text task by name; the columns that group texts
    asking = {
        ids(path)
        for path in MODULES
        for node in nodes_of(path)
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


def test_functions_are_short():
    long = []
    for path in (p for p in MODULES if p.is_relative_to(ROOT / "leebert") or p.is_relative_to(ROOT / "tune")):
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1 if ast.get_docstring(node) else 0 :] or node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                if lines > MOST_LINES:
                    long.append(
                        f"{ids(path)}: {node.name} has {lines} lines; split it into functions that have one task each"
                    )
    assert not long


#: Names that the glossary of this project replaces: a sample exits, a baseline, a completed or pruned run, a result, a place.
REPLACED_NAMES = frozenset(
    (
        "answers",
        "found",
        "gone_on",
        "heard",
        "known",
        "left",
        "rival",
        "rivals",
        "said",
        "settled",
        "there",
        "told",
        "what_it_scored",
    )
)

#: Of these, the key `found` of best files, and the option `left` of tables for columns that are left-aligned.
KEPT_NAMES = {
    ("leebert/console.py", "left"),
    ("leebert/recipe.py", "found"),
    ("tune/models/best_file.py", "found"),
}


def defined_names(node):
    """The name that a node of a syntax tree defines: of a function, class, parameter, variable or attribute."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.attr
    return node.arg if isinstance(node, ast.arg) else ""


def test_names_are_those_of_the_glossary():
    wrong = []
    for path in (p for p in MODULES if p.is_relative_to(ROOT / "leebert") or p.is_relative_to(ROOT / "tune")):
        for node in nodes_of(path):
            name = defined_names(node).strip("_")
            if name in REPLACED_NAMES and (ids(path), name) not in KEPT_NAMES:
                wrong.append(
                    f"{ids(path)}, line {node.lineno}: {name}: use the field's word for it, such as result or sample"
                )
    assert not wrong


def test_gradients_of_training_are_taken_in_one_file():
    """No method, task or program has a training loop of its own."""
    assert [ids(path) for path in MODULES if ".backward(" in path.read_text()] == ["leebert/level.py"]


def test_public_names_resolve():
    import leebert

    assert sorted(leebert.__all__) == sorted(leebert._MODULES)
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


def test_no_generic_module_compares_a_criterion_or_metric_by_its_name():
    """What a criterion or a metric is like stands in its row; names are data, not conditions."""
    own = (ROOT / "leebert" / "exits", ROOT / "leebert" / "metrics")
    names, wrong = {*CRITERIA.built_in, *METRICS.built_in}, []
    for path in (p for p in MODULES if p.parent not in own):
        for node in nodes_of(path):
            if isinstance(node, ast.Compare):
                sides = (node.left, *node.comparators)
                constants = [c for side in sides for c in getattr(side, "elts", [side])]
                found = names & {c.value for c in constants if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                wrong += [f"{ids(path)}:{node.lineno}: {name}" for name in found]
            elif isinstance(node, ast.match_case):
                wrong += [
                    f"{ids(path)}: {c.value}" for c in ast.walk(node.pattern) if getattr(c, "value", None) in names
                ]
    assert not wrong


def method_names(nodes):
    """Names of methods that a file decides by: in a comparison, a match, the key of a mapping, or as a prefix.

    Words that also name an exit criterion, a teacher set or an option are not counted.
    """
    from leebert.config import TrainConfig
    from leebert.exits import CRITERIA
    from leebert.losses import TEACHERS
    from leebert.methods import METHODS

    names = {*METHODS} - {*CRITERIA, *TEACHERS, *TrainConfig.model_fields}

    def within(node):
        parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}

    for node in nodes:
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            sides = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Subscript):
            sides = [node.slice]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            words = set().union(*map(within, node.args))
            yield from (word for word in words if word and any(getattr(name, node.func.attr)(word) for name in names))
            continue
        else:
            continue
        yield from set().union(*map(within, sides)) & names


def test_no_module_decides_by_the_name_of_a_method():
    """What is special about a method is an attribute of it, so that another package's may be special likewise."""
    code = """if name == "blo": pass
if name in ("clo-v2", "x"): pass
COLOURS = {"pabee": 1}
name.startswith("clo")"""
    assert sorted(method_names(ast.walk(ast.parse(code)))) == ["blo", "clo", "clo-v2", "pabee"]
    files = [p for p in MODULES if p.parent.name != "methods"] + sorted((ROOT / "benchmarks").glob("*.py"))
    found = {(ids(path), name) for path in files for name in method_names(nodes_of(path))}
    assert found == {("leebert/data/tokens.py", "truncated")}, "there it is a column of a table"
