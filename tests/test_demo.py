"""The demo's folder, what it prints about MLflow, and Ctrl-C; the demo itself runs by `make demo`."""

import signal
import sys

import pytest

from leebert.errors import ConfigError
from tune import demo


def test_only_an_earlier_demos_folder_is_replaced(tmp_path):
    folder = tmp_path / "demo"
    demo.clear(folder)
    (folder / "old").touch()
    demo.clear(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARKER]
    (tmp_path / "mine" / "sweeps").mkdir(parents=True)
    with pytest.raises(ConfigError, match="mine is not an earlier demo's folder"):
        demo.clear(tmp_path / "mine")
    assert (tmp_path / "mine" / "sweeps").is_dir()


@pytest.mark.parametrize("uri", ["postgresql://u:secret@h/db", "http://u:secret@h:5000"])
def test_no_password_is_printed_and_no_second_server_beside_a_server(uri):
    lines = demo.mlflow_lines(uri, from_environment=True)
    assert "secret" not in lines
    assert (" ui " in lines) == uri.startswith("postgresql")


def test_ctrl_c_waits_for_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "import os, time, pathlib; os.kill(os.getppid(), 2); time.sleep(0.4); pathlib.Path('end').touch()"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            demo.Steps().run("wait", sys.executable, "-c", command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "end").exists()
