"""YAML 1.2 files: `1e-5` is a number, `on` is text, and a duplicate key is an error."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, nearest

#: Deeper brackets than the parser can follow.
MOST_DEPTH = 1000

#: The largest number of values of a file, aliases written out; aliases of aliases could give any number.
MOST_VALUES = 1_000_000

_TOO_DEEP = "lists or mappings are nested too deeply to be read"


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """A key that a file has twice."""

    key: str  #: dotted
    line: int
    first: int  #: the line of the first one

    def __str__(self) -> str:
        return f"{self.key}: line {self.line}: duplicate key, first in line {self.first}"


@dataclasses.dataclass(frozen=True)
class Document:
    """The content of a YAML text, and its duplicate keys, of which the content has one."""

    content: Any
    duplicates: tuple[Duplicate, ...]


def load_yaml(path: str | Path) -> Any:
    """Read the content of a YAML file.

    Raises:
        ConfigError: The file can't be read, with its line; or it has duplicate keys, with a line for each.
    """
    return parse_yaml(read_text(Path(path)), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Read the content of a YAML text, as :func:`load_yaml`; errors name `where`."""
    document = parse_document(text, where)
    if document.duplicates:
        raise ConfigError("\n".join(f"{where}: {duplicate}" for duplicate in document.duplicates))
    return document.content


def read_text(path: Path) -> str:
    """Read a text file. Raises ConfigError, for a missing file with the nearest name in its folder."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigError(f"{path}: no such file{nearest(path.name, names)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8 text ({error})") from None


def parse_document(text: str, where: str) -> Document:
    """Read a YAML text and all its duplicate keys, where the parser would stop at the first.

    Aliases of an anchor become separate values, so that a change of one does not change the others.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    _refuse_deep(text, where)
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    try:
        node = yaml.compose(text)
        duplicates = tuple(_duplicates(node, set()))
        content = None if node is None else yaml.constructor.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{where}{line}: {problem}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None
    except (ValueError, OverflowError, TypeError, AttributeError) as error:  # an invalid date, or a tag's wrong value
        raise ConfigError(f"{where}{_unreadable(text)}: a value can't be read: {error}") from None
    try:
        return Document(_unshared(content, itertools.count(1)), duplicates)
    except RecursionError:
        raise ConfigError(f"{where}: an alias (`*name`) is inside its own anchor (`&name`)") from None
    except OverflowError:
        raise ConfigError(f"{where}: more than {MOST_VALUES} values with all aliases written out") from None


def dump_yaml(value: Any) -> str:
    """Write a value as YAML 1.2 text, keys in their order, short lists and mappings on one line."""
    import io

    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)  # its options have no types
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 110
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()


def _refuse_deep(text: str, where: str) -> None:
    """Raise ConfigError with the line where brackets are nested too deeply: the parser takes long before it gives up."""
    depth = 0
    for number, row in enumerate(text.splitlines(), start=1):
        for sign in row:
            depth += (sign in "[{") - (sign in "]}")
            if depth > MOST_DEPTH:
                raise ConfigError(f"{where}, line {number}: {_TOO_DEEP}")


def _duplicates(node: Any, visited: set[int], prefix: str = "") -> Iterator[Duplicate]:
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, SequenceNode):
        for item in node.value:
            yield from _duplicates(item, visited, prefix)
    if isinstance(node, MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = ".".join(filter(None, (prefix, str(key.value)))), key.start_mark.line + 1
            if name in lines:
                yield Duplicate(name, line, lines[name])
            lines.setdefault(name, line)
            yield from _duplicates(value, visited, name)


def _unshared(value: Any, numbers: Iterator[int]) -> Any:
    """Copy a value with separate copies of what aliases share. Raises OverflowError after :data:`MOST_VALUES` values."""
    if next(numbers) > MOST_VALUES:
        raise OverflowError
    if isinstance(value, dict):
        return {key: _unshared(item, numbers) for key, item in value.items()}
    return [_unshared(item, numbers) for item in value] if isinstance(value, list) else value


def _unreadable(text: str) -> str:
    """Return `, line N` of the first value that looks like a number or date but is none; empty if there is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import ScalarNode

    yaml = YAML(typ="safe", pure=True)
    waiting: list[Any] = [yaml.compose(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += reversed(node)
        elif not isinstance(node, ScalarNode):
            waiting += reversed(getattr(node, "value", []))
        else:
            try:
                yaml.constructor.construct_object(node)
            except (ValueError, OverflowError, TypeError, AttributeError):
                return f", line {node.start_mark.line + 1}"
    return ""
