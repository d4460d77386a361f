"""Registries: built-in parts, parts of installed packages, registered ones, and what is refused."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leebert import plugins
from leebert.errors import ConfigError
from leebert.plugins import Origin, Registry
from leebert.provenance import digest_of


def is_callable(name: str, part: Any) -> None:
    if not callable(part):
        raise TypeError("it can't be called")


def registry(group: str = "leebert.tests") -> Registry[Any]:
    return Registry("decoder", group, "json", "JSONDecoder", {"standard": "decoder"}, is_callable)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a package of one module and its entry points, as pip leaves it."""

    def install(name: str, source: str, **points: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        lines = "".join(f"{key} = {name}:{value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[leebert.tests]\n{lines}")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_a_built_in_part_is_imported_when_it_is_used() -> None:
    import json.decoder

    parts = registry()
    assert list(parts) == ["standard"]
    assert parts["standard"] is json.decoder.JSONDecoder
    assert parts.origin("standard") is None
    with pytest.raises(KeyError):
        parts["other"]
    assert "decoder 'other' is not known here (standard); if a package brings 'other', install" in parts.unknown(
        "other"
    )
    assert "(standard) (did you mean 'standard'?); " in parts.unknown("standrad")


def test_a_registered_part(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = registry()
    assert parts.register("mine", is_callable) is is_callable
    parts.register("mine", is_callable)  # again: a module that is imported twice
    assert list(parts) == ["standard", "mine"]
    assert len(parts) == 2
    assert parts.origin("mine") == Origin(__name__, code=digest_of(Path(__file__)))
    with pytest.raises(ConfigError, match="decoder 'standard' is claimed by leebert and by .*; rename one"):
        parts.register("standard", is_callable)
    with pytest.raises(ConfigError, match=f"decoder 'mine' is claimed by {__name__} and by leebert.plugins"):
        parts.register("mine", plugins.load_modules)
    with pytest.raises(ConfigError, match=f"decoder 'three' of {__name__} does not fit"):
        parts.register("three", 3)  # an instance comes from where it is registered
    with pytest.raises(ConfigError, match="decoder 'three' of my_module does not fit"):
        parts.register("three", 3, module="my_module")


def test_a_part_of_an_installed_package(site: Any) -> None:
    site("leebert_first", "def part(): ...\n", mine="part")
    parts = registry()
    assert "mine" in parts
    assert "leebert_first" not in sys.modules
    assert parts["mine"] is sys.modules["leebert_first"].part
    assert str(parts.origin("mine")) == "leebert_first 1.5 (leebert_first)"


def test_a_registered_part_of_an_installed_package(site: Any, tmp_path: Path) -> None:
    site("leebert_first", "def part(): ...\n")
    (tmp_path / "leebert_first-1.5.dist-info" / "top_level.txt").write_text("leebert_first\n")
    plugins._packages.cache_clear()
    parts = registry()
    parts.register("mine", importlib.import_module("leebert_first").part)
    assert str(parts.origin("mine")) == "leebert_first 1.5 (leebert_first)"
    plugins._packages.cache_clear()


@pytest.mark.parametrize(
    ("name", "claimants"),
    [
        ("mine", "leebert_(first|second) 1.5 and by leebert_(first|second) 1.5"),
        ("standard", "leebert and by leebert_(first|second) 1.5"),
    ],
)
def test_two_packages_that_claim_one_name(site: Any, name: str, claimants: str) -> None:
    site("leebert_first", "def part(): ...\n", **{name: "part"})
    site("leebert_second", "def part(): ...\n", **{name: "part"})
    with pytest.raises(ConfigError, match=f"decoder '{name}' is claimed by {claimants}"):
        list(registry())


def test_a_package_that_fails(site: Any) -> None:
    site("leebert_first", "import no_such_module\n", mine="part")
    with pytest.raises(
        ConfigError, match=r"decoder 'mine' of leebert_first 1.5 \(leebert_first\) can't be loaded .*no_such_module"
    ):
        registry()["mine"]
    site("leebert_second", "part = 3\n", three="part")
    with pytest.raises(ConfigError, match="decoder 'three' of leebert_second 1.5 .* does not fit: it can't be called"):
        registry()["three"]


def test_modules_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("leebert_mine")
    monkeypatch.setitem(sys.modules, "leebert_mine", module)
    monkeypatch.setenv(plugins.VARIABLE, "leebert_mine, leebert_missing")
    with pytest.raises(
        ConfigError, match="LEEBERT_PLUGINS: module leebert_missing can't be imported .*; correct the name"
    ):
        list(registry())


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (
            "from leebert.errors import ConfigError\nraise ConfigError('part x does not fit')",
            "",
            ": part x does not fit$",
        ),
        (
            "import leebert_no_such",
            "",
            " can't be imported .ModuleNotFoundError: .*leebert_no_such'.; correct that module",
        ),
        ("1 / 0", "", " can't be imported .ZeroDivisionError: .*; correct that module"),
        ("", ".py", " can't be imported .*; correct the name .no path, no .py;"),
        ("", ";other", " can't be imported .*; correct the name"),
        ("", "/other", " can't be imported .*; correct the name"),
    ],
)
def test_a_module_of_the_environment_that_fails(
    code: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is about what is wrong: the name, the module, or the part that it registers."""
    (tmp_path / "leebert_wrong.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(plugins.VARIABLE, f"leebert_wrong{name}")
    with pytest.raises(ConfigError, match=f"^LEEBERT_PLUGINS: module leebert_wrong{name}{message}"):
        list(registry())
    sys.modules.pop("leebert_wrong", None)
