"""YAML 1.2 files: `1e-5` is a number, `on` is text, and a duplicate key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leebert.errors import ConfigError

#: Deeper brackets than the parser can follow.
MOST_DEPTH = 1000

#: What is wrong with a file whose brackets or indentation go hundreds of levels down.
TOO_DEEP = "lists or mappings are nested too deeply to be read"


def load_yaml(path: str | Path) -> Any:
    """The contents of a YAML file. Raises ConfigError with file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as UTF-8 text ({error})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The contents of YAML text; `where` is named in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    refuse_deep(text, where)
    try:
        return YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise ConfigError(f"{where}: {TOO_DEEP}") from None
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = (error.problem or "").split(" with value")[0]
        raise ConfigError(f"{where}, line {line}: {problem}: keep one of the two") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{where}, line {line}: {error.problem or error.context}") from None
    except YAMLError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, OverflowError, TypeError, AttributeError) as error:  # a date that is none, a tag's wrong value
        raise ConfigError(f"{where}{unreadable(text)}: a value can't be read: {error}") from None


def refuse_deep(text: str, where: str) -> None:
    """ConfigError with the line where brackets are nested too deeply: the parser would take long before it gives up."""
    depth = 0
    for number, row in enumerate(text.splitlines(), start=1):
        for sign in row:
            depth += (sign in "[{") - (sign in "]}")
            if depth > MOST_DEPTH:
                raise ConfigError(f"{where}, line {number}: {TOO_DEEP}")


def unreadable(text: str) -> str:
    """`, line N` of the first value that has the form of a number or date and is none; empty where it isn't found."""
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


def dump_yaml(value: Any) -> str:
    """YAML 1.2 text, keys in their order."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 110
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
