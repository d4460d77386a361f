"""Registries: built-in plugins, plugins of installed packages, registered ones, and what is refused."""

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leebert import plugins
from leebert.errors import ConfigError
from leebert.methods import METHODS, Method
from leebert.plugins import Origin, Registry
from leebert.provenance import digest_of


@dataclasses.dataclass(frozen=True)
class Decoder:
    name: str
    make: Callable[[], Any]
    colour: str | None = None


def refuse_lists(plugin: Decoder) -> None:
    if plugin.make is list:
        raise ValueError("it makes lists")


def registry(group: str = "leebert.tests") -> Registry[Any]:
    return Registry("decoder", group, "json", "JSONDecoder", {"standard": "decoder"}, Decoder, refuse_lists)


def made() -> None: ...


MINE = Decoder("mine", made)

#: The module of a package with the plugin `mine`.
SOURCE = "from test_decodersparts import Decoder\n\n\ndef made(): ...\n\n\nplugin = Decoder('mine', made)\n"


@pytest.fixture(autouse=True)
def provided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of other packages import the class of the plugins from here."""
    module = ModuleType("test_decodersparts")
    module.Decoder = Decoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_decodersparts", module)


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


def test_a_built_in_plugin_is_imported_when_it_is_used() -> None:
    import json.decoder

    decoders = registry()
    assert list(decoders) == ["standard"]
    assert decoders["standard"] is json.decoder.JSONDecoder
    assert decoders.origin("standard") is None
    with pytest.raises(KeyError):
        decoders["other"]
    assert "decoder 'other' is not known here (standard); if a package brings 'other', install" in decoders.unknown(
        "other"
    )
    assert "(standard) (did you mean 'standard'?); " in decoders.unknown("standrad")


def test_a_registered_plugin() -> None:
    decoders = registry()
    assert decoders.register(MINE) is MINE
    decoders.register(MINE)  # again: a module that is imported twice
    assert list(decoders) == ["standard", "mine"]
    assert len(decoders) == 2
    assert decoders.origin("mine") == Origin(__name__, code=digest_of(Path(__file__)))
    with pytest.raises(ConfigError, match=f"decoder 'standard' is claimed by leebert and by {__name__}; rename one"):
        decoders.register(Decoder("standard", made))
    with pytest.raises(ConfigError, match=f"decoder 'mine' is claimed by {__name__} and by my_module; rename one"):
        decoders.register(Decoder("mine", made), module="my_module")
    with pytest.raises(ConfigError, match=f"decoder 'mine' is registered by {__name__} already, as another plugin"):
        decoders.register(Decoder("mine", made))
    with pytest.raises(ConfigError, match="decoder 3 of my_module has no name"):
        decoders.register(3, module="my_module")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Decoder("mine", None), "make should be a function, not None"),  # type: ignore[arg-type]
        (Decoder("mine", list), "it makes lists"),
        (Decoder("mine", made, "purple-ish"), "colour 'purple-ish' should be #rrggbb"),
        (Decoder("mine", made, 3), "colour should be a text or None, not 3"),  # type: ignore[arg-type]
        (Decoder("mine, patience 3", made), "name 'mine, patience 3' should have small letters, digits"),
        (Decoder("a b/c", made), "name 'a b/c' should have small letters, digits"),
        (Path("mine"), "it should be a .*Decoder, not PosixPath"),
    ],
)
def test_a_plugin_that_does_not_fit(plugin: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"decoder {plugin.name!r} of {__name__} does not fit: {message}"):
        registry().register(plugin, module=__name__)


def test_a_notebook_replaces_its_own_plugin_only() -> None:
    decoders, other = registry(), Decoder("mine", made, "#112233")
    decoders.register(MINE, module="__main__")
    assert decoders.register(other, module="__main__") is decoders["mine"] is other
    with pytest.raises(ConfigError, match=f"decoder 'mine' is claimed by __main__ and by {__name__}"):
        decoders.register(MINE)


@pytest.mark.parametrize(
    ("code", "module"),
    [
        (
            "def add(): decoders.register(plugin)",
            "my_functions",
        ),  # called by another module: that of the plugin's function
        ("decoders.register(plugin)", "my_parts"),  # its import registers the plugin
    ],
)
def test_the_module_of_a_plugin_is_one_whose_import_registers_it(code: str, module: str) -> None:
    def made() -> None: ...

    made.__module__ = "my_functions"
    decoders = registry()
    names: dict[str, Any] = {"__name__": "my_parts", "decoders": decoders, "plugin": Decoder("mine", partial(made))}
    exec(code, names)
    names.get("add", int)()
    origin = decoders.origin("mine")
    assert origin is not None
    assert origin.module == module


def test_a_plugin_of_an_installed_package(site: Any) -> None:
    site("leebert_first", SOURCE, mine="plugin")
    decoders = registry()
    assert "mine" in decoders
    assert "leebert_first" not in sys.modules
    assert decoders["mine"] is sys.modules["leebert_first"].plugin
    assert str(decoders.origin("mine")) == "leebert_first 1.5 (leebert_first)"


def test_a_registered_plugin_of_an_installed_package(site: Any, tmp_path: Path) -> None:
    site("leebert_first", SOURCE)
    (tmp_path / "leebert_first-1.5.dist-info" / "top_level.txt").write_text("leebert_first\n")
    plugins._packages.cache_clear()
    decoders = registry()
    decoders.register(importlib.import_module("leebert_first").plugin, module="leebert_first")
    assert str(decoders.origin("mine")) == "leebert_first 1.5 (leebert_first)"
    plugins._packages.cache_clear()


def test_a_plugin_of_an_installed_package_is_not_shadowed(site: Any) -> None:
    site("leebert_first", SOURCE, mine="plugin")
    decoders = registry()
    with pytest.raises(ConfigError, match=f"decoder 'mine' is claimed by leebert_first 1.5 and by {__name__}; rename"):
        decoders.register(MINE)
    own = decoders["mine"]
    assert decoders.register(own, module="leebert_first") is own  # the module registers what its entry point names
    assert str(decoders.origin("mine")) == "leebert_first 1.5 (leebert_first)"


@pytest.mark.parametrize(
    ("name", "claimants"),
    [
        ("mine", "leebert_(first|second) 1.5 and by leebert_(first|second) 1.5"),
        ("standard", "leebert and by leebert_(first|second) 1.5 and by leebert_(first|second) 1.5"),
    ],
)
def test_a_name_that_two_packages_claim_concerns_nothing_else(site: Any, name: str, claimants: str) -> None:
    site("leebert_first", SOURCE, **{name: "plugin"})
    site("leebert_second", SOURCE, **{name: "plugin"}, other="other")
    decoders = registry()
    for use in (lambda: decoders[name], lambda: name in decoders, lambda: decoders.get(name)):
        with pytest.raises(ConfigError, match=f"decoder '{name}' is claimed by {claimants}; rename one"):
            use()
    assert set(decoders) == {"standard", "other", name}
    assert "other" in decoders
    assert "another" not in decoders
    assert f"decoder 'another' is not known here ({', '.join(decoders)})" in decoders.unknown("another")


def test_a_package_that_fails_concerns_nothing_else(site: Any) -> None:
    site("leebert_first", "import no_such_module\n", broken="plugin")
    site("leebert_second", SOURCE, mine="plugin")
    decoders = registry()
    assert decoders["mine"].name == "mine"
    assert decoders["standard"]
    with pytest.warns(UserWarning, match="skipped: decoder 'broken' of leebert_first 1.5 .* can't be loaded"):
        names = [name for name, _ in decoders.items()]
    assert names == ["standard", "mine"]
    assert len(decoders.values()) == 2  # without another warning
    with pytest.raises(
        ConfigError, match=r"decoder 'broken' of leebert_first 1.5 \(leebert_first\) can't be loaded .*no_such_module"
    ):
        decoders["broken"]
    site("leebert_third", "plugin = 3\n", three="plugin")
    with pytest.raises(
        ConfigError, match="decoder 'three' of leebert_third 1.5 .* does not fit: it should be a .*Decoder"
    ):
        registry()["three"]


def test_a_kind_has_its_registry_before_its_module_is_imported() -> None:
    code = (
        "import sys; from leebert.plugins import registry_of, _HOMES as homes\n"
        "assert 'leebert.methods' not in sys.modules\n"
        "print([registry_of(kind).kind for kind in homes] == [*homes])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    with pytest.raises(ConfigError, match=r"no kind of plugin 'prunr', only method, .*did you mean 'pruner'\?"):
        plugins.registry_of("prunr")


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
            "from leebert.errors import ConfigError\nraise ConfigError('plugin x does not fit')",
            "",
            ": plugin x does not fit$",
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
    """The advice is about what is wrong: the name, the module, or the plugin that it registers."""
    (tmp_path / "leebert_wrong.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(plugins.VARIABLE, f"leebert_wrong{name}")
    with pytest.raises(ConfigError, match=f"^LEEBERT_PLUGINS: module leebert_wrong{name}{message}"):
        list(registry())
    sys.modules.pop("leebert_wrong", None)


@pytest.mark.parametrize(
    ("attribute", "name", "problem"),
    [
        ("METHODS", "slo", "module leebert.methods.slo has no variable METHODS; bind the plugin to it"),
        ("METHOD", "sllo", "the METHOD of leebert.methods.slo has the name 'slo'; make both equal"),
    ],
)
def test_a_built_in_plugin_that_is_bound_wrongly_is_named(attribute: str, name: str, problem: str) -> None:
    methods: Registry[Any] = Registry("method", "x.y", "leebert.methods", attribute, {name: "slo"}, Method)
    with pytest.raises(ConfigError, match=re.escape(f"method {name!r}: {problem}")):
        methods[name]


def test_a_built_in_plugin_is_not_registered() -> None:
    with pytest.raises(
        ConfigError, match="'slo' is built in: leebert.methods.slo binds it to METHOD and does not call"
    ):
        METHODS.register(METHODS["slo"], module="leebert.methods.slo")
