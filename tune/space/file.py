"""Reading a search space from YAML with overrides; one exception lists all errors of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from leebert.data.tasks import OwnTask
from leebert.errors import ConfigError, nearest
from leebert.yaml import TOO_DEEP, refuse_deep, unreadable
from tune.space.findings import Finding, dotted, keys_below, of_details, shown
from tune.space.sections import PrunerSpec, SearcherSpec, expand_name
from tune.space.shipped import find_space
from tune.space.spec import SweepSpec
from tune.space.values import ValueList, options

#: Other names of keys, such as `algorithm: clo-v2`.
_ALIASES = {"algorithm": "algorithms"}

#: Values for required keys that are missing or wrong, so that the checks of the others can still run.
_STAND_INS: dict[str, Any] = {"task": "mrpc", "backbone": "?", "space": {"batch_size": ValueList((32,))}}


def load_space(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep from a file.

    Args:
        path: The file, or the name of a search space of the package.
        overrides: ``key=value`` each, with dotted keys and YAML values.

    Raises:
        ConfigError: With a line ``file: key: value: what was expected`` for each error.
    """
    file = find_space(path)
    raw, findings = _read_yaml(_text(file), str(file))
    return _spec(raw, overrides, str(file), findings)


def make_space(raw: dict[str, Any], overrides: Sequence[str], where: str) -> SweepSpec:
    """Make a sweep from a mapping, as :func:`load_space`; `where` replaces the file in errors. It changes `raw`."""
    return _spec(raw, overrides, where, [])


def _spec(raw: dict[str, Any], overrides: Sequence[str], where: str, findings: list[Finding]) -> SweepSpec:
    for alias, key in _ALIASES.items():
        if alias in raw:
            value = raw.pop(alias)
            if key in raw:
                findings = [*findings, Finding(alias, shown(value), f"is also given as `{key}`: keep one of the two")]
            else:
                raw[key] = value
    findings = [*findings, *_override(raw, overrides)]
    spec, more = _validate(raw)
    if spec is None or findings:
        keys = [canonical(override.partition("=")[0]) for override in overrides]
        lines = [finding.line(where) for finding in findings]
        lines += [finding.line("--set" if _is_set(finding.key, keys) else where) for finding in more]
        raise ConfigError("\n".join(lines))
    return spec


def _is_set(key: str, overridden: Sequence[str]) -> bool:
    """Tell whether the value of a dotted key comes from `--set`."""
    return any(key == other or key.startswith(f"{other}.") for other in overridden)


def _validate(raw: Mapping[str, Any]) -> tuple[SweepSpec | None, list[Finding]]:
    try:
        return SweepSpec.model_validate(raw), []
    except ValidationError as error:
        findings = [finding for details in error.errors() for finding in of_details(details, _keys())]
        broken = frozenset(str(details["loc"][0]) for details in error.errors() if details["loc"])
    if broken:  # the checks across keys did not run: run those of the valid keys
        sound = {key: value for key, value in raw.items() if str(key) not in broken}
        try:
            SweepSpec.model_validate({**_STAND_INS, **sound}, context={"broken": broken})
        except ValidationError as error:
            findings += [finding for details in error.errors() for finding in of_details(details, _keys())]
    return None, findings


def _keys() -> dict[str, tuple[str, ...]]:
    """The valid keys below each dotted prefix."""
    return {
        **keys_below(SweepSpec),
        "searcher": SearcherSpec.keys(),
        "pruner": PrunerSpec.keys(),
        "space": options(),
        "training": options(),
        **keys_below(OwnTask, "task"),
        "task.files": ("train", "dev"),
    }


def canonical(path: str) -> str:
    """Return the dotted path of `--set` with the specification's name of its key."""
    return _ALIASES.get(path.strip(), path.strip())


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> list[Finding]:
    """Write ``key=value`` overrides into the file's mapping; return their errors."""
    findings: list[Finding] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        path = canonical(path)
        wrong = _unknown_path(path)
        if not equals:
            findings.append(Finding("--set", shown(override), "should be key=value"))
        elif wrong:
            findings.append(Finding("--set", shown(override), wrong))
        else:
            try:
                refuse_deep(text, path)
                value = _yaml().load(text)
                _put(raw, path.split("."), value)
            except YAMLError as error:
                findings.append(Finding("--set", shown(override), f"is not YAML: {_problem(error)[1]}"))
            except (RecursionError, ConfigError):
                findings.append(Finding("--set", shown(override), TOO_DEEP))
            except (ValueError, OverflowError) as error:
                findings.append(Finding("--set", shown(override), f"can't be read: {error}"))
            except TypeError as error:
                findings.append(Finding("--set", shown(override), str(error)))
    return findings


def _unknown_path(path: str) -> str:
    """Return why a dotted path is not a key; empty if it is."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        prefix = ".".join(parts[:depth])
        if prefix not in _keys():
            return f"unknown key: `{prefix}` has no keys below it"
        if part not in _keys()[prefix]:
            # Without the prefix that all of them share: it would make any two keys alike.
            return f"unknown key{nearest(part, _keys()[prefix]) or ('' if prefix else nearest(path, _leaves()))}"
    return ""


def _leaves() -> list[str]:
    return [dotted(prefix, key) for prefix, keys in _keys().items() for key in keys]


def _put(raw: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    target = raw
    for depth, part in enumerate(parts[:-1]):
        below = target.get(part)
        if below is None:
            below = {}
        elif part in ("searcher", "pruner"):
            below = expand_name(below)
        if not isinstance(below, dict):
            raise TypeError(f"`{'.'.join(parts[: depth + 1])}` is {shown(below)}, not a mapping with keys")
        target[part] = below
        target = below
    target[parts[-1]] = value


def _yaml() -> YAML:
    """Make a safe reader of YAML 1.2, in which `1e-5` is a number and `on` a text."""
    return YAML(typ="safe", pure=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigError(f"{path}: no such file{nearest(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as text in UTF-8: {error}") from None


def _read_yaml(text: str, where: str) -> tuple[dict[str, Any], list[Finding]]:
    """Read the mapping in a text, and all its duplicate keys, where the parser would stop at the first."""
    refuse_deep(text, where)
    yaml = _yaml()
    yaml.allow_duplicate_keys = True
    try:
        node = _yaml().compose(text)
        content = yaml.load(text)
    except YAMLError as error:
        line, problem = _problem(error)
        raise ConfigError(f"{where}: line {line}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None
    except (ValueError, OverflowError, TypeError, AttributeError) as error:  # an invalid date, or a tag's wrong value
        raise ConfigError(f"{where}{unreadable(text)}: a value can't be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {shown(content)}: should be a mapping, see search_spaces/README.md")
    try:
        return _unshared(content), list(_duplicates(node))
    except RecursionError:
        raise ConfigError(f"{where}: an alias (`*name`) is inside its own anchor (`&name`)") from None


def _unshared(value: Any) -> Any:
    """Copy the aliases of an anchor to separate values, so that an override of one does not change the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _problem(error: YAMLError) -> tuple[int, str]:
    """Return line and description of a parser's error."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return error.problem_mark.line + 1, ", ".join(filter(None, (error.context, error.problem)))
    return 1, str(error).splitlines()[0]


def _duplicates(node: Node | None, prefix: str = "") -> Iterator[Finding]:
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _duplicates(item, prefix)
    if isinstance(node, MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = dotted(prefix, str(key.value)), key.start_mark.line + 1
            if name in first:
                yield Finding(name, f"line {line}", f"duplicate key, first in line {first[name]}")
            first.setdefault(name, line)
            yield from _duplicates(value, name)
