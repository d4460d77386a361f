"""Hosts of a network of their own on one machine, made of Linux namespaces: for clusters that lose machines.

A :class:`Host` has its own network, processes, host name, home folder, /tmp and /dev/shm, and shares everything
else: packages, the checkout, and so whatever folder serves as the cluster's file system. The hosts hang on one bridge
that nothing else is on. Needs root on Linux with iproute2, and openssh-server where `sshd` is asked for.

No name stands in the machine's own network or process table, so two runs never meet. All of it is tied to this
process: when it ends in whatever way, the kernel takes down the hosts, their processes and their network.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUBNET = "10.77.0"
NAMESPACES = ("unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")

# What the first process of a host does: private folders, then sshd where wanted, then to wait for what is orphaned.
INIT = """
set -e
hostname {name}
mount --bind {home} {shared_home}
for kept in {kept}; do
  mkdir -p {state}$kept
  mount --rbind $kept {state}$kept
done
mount --rbind {state}/tmp /tmp
mount --bind {state}/passwd /etc/passwd
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/sshd
{sshd}
echo up
while :; do sleep 1000 & wait $!; done
"""


def why_not() -> str | None:
    """What this machine lacks for hosts, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts in namespaces need root on Linux"
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "sshd", "rsync") if not shutil.which(tool)]:
        return f"hosts in namespaces need {', '.join(missing)} (Debian: iproute2, util-linux, openssh-server, rsync)"
    tried = subprocess.run(
        [*NAMESPACES, "--net", "mount", "-t", "tmpfs", "none", "/run"], capture_output=True, text=True
    )
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else None


#: Looked up before a fork: what another thread of this process has locked, its child can't take.
_PRCTL = ctypes.CDLL(None).prctl


def _with_us() -> None:
    """Makes the kernel kill a child process when the thread that starts it ends (prctl PR_SET_PDEATHSIG)."""
    _PRCTL(1, signal.SIGKILL)


def _new_network() -> int:
    """A file descriptor that keeps a new network namespace alive."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        return os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)


def _ip(network: int, *words: str, keep: tuple[int, ...] = ()) -> None:
    command = ["nsenter", f"--net=/proc/self/fd/{network}", "ip", *words]
    subprocess.run(command, check=True, pass_fds=(network, *keep))


class Host:
    """One host: a network that stays, and processes that come with `boot` and go with `crash`."""

    def __init__(self, hosts: Hosts, name: str, number: int, sshd: bool) -> None:
        self.hosts, self.name, self.ip, self.sshd = hosts, name, f"{SUBNET}.{number}", sshd
        self.state = hosts.folder / name
        self.home = self.state / "home"
        for folder in (self.home, self.state / "tmp"):
            folder.mkdir(parents=True)
        self.home.chmod(0o700)
        (self.state / "passwd").write_text(
            f"root:x:0:0:root:{hosts.home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        )
        self.network = _new_network()
        _ip(
            hosts.switch, "link", "add", name, "type", "veth", "peer", "name", "eth0",
            "netns", f"/proc/self/fd/{self.network}", keep=(self.network,),
        )  # fmt: skip
        _ip(hosts.switch, "link", "set", name, "master", "bridge", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.ip}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            # Nobody is there. But programs find out their own address by asking for the way to some far one.
            ("route", "add", "default", "via", f"{SUBNET}.254"),
        ):
            _ip(self.network, *words)
        self.init: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Start the host's first process; its files are those that it had before."""
        sshd = f"/usr/sbin/sshd -f {self.hosts.folder}/sshd_config -E {self.state}/sshd.log" if self.sshd else "true"
        needed = {str(self.hosts.folder), str(ROOT), sys.prefix, sys.base_prefix}
        kept = " ".join(sorted(path for path in needed if path.startswith("/tmp/")))
        script = INIT.format(
            name=self.name, home=self.home, shared_home=self.hosts.home, state=self.state, sshd=sshd, kept=kept
        )  # fmt: skip
        self.init = subprocess.Popen(
            ["nsenter", f"--net=/proc/self/fd/{self.network}", *NAMESPACES, "bash", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            pass_fds=(self.network,), preexec_fn=_with_us,
        )  # fmt: skip
        assert self.init.stdout
        said = self.init.stdout.readline()
        if said != "up\n":
            raise RuntimeError(f"host {self.name} did not start: {said}{self.init.stdout.read()}")

    def crash(self) -> None:
        """Kill every process at once. The network still answers, but that nobody listens any more."""
        assert self.init
        self.init.kill()  # --kill-child passes it on to the first process, whose end is that of all others
        self.init.wait()
        assert self.init.stdout
        self.init.stdout.close()
        self.init = None

    def cut(self) -> None:
        """Take the host's network away: whoever talks to it hears nothing any more."""
        _ip(self.hosts.switch, "link", "set", self.name, "down")

    def heal(self) -> None:
        """Give the network back."""
        _ip(self.hosts.switch, "link", "set", self.name, "up")

    def command(self, *words: str, **environment: str) -> list[str]:
        """A command line for this machine that runs one in the host, in the checkout and with nothing of our environment."""
        assert self.init, f"{self.name} is down"
        (first,) = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        values = {
            "HOME": str(self.hosts.home), "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb",
            "PATH": f"{self.hosts.home}/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment,
        }  # fmt: skip
        enter = ["nsenter", "--target", first, "--net", "--pid", "--mount", "--uts", "--ipc", f"--wd={ROOT}"]
        with_nsenter = ["setpriv", "--pdeathsig", "KILL"]  # which stays between us and the command
        return [*enter, *with_nsenter, "env", "-i", *(f"{k}={v}" for k, v in values.items()), *words]

    def install(self) -> None:
        """What cluster/install.sh leaves behind, without a package index: ~/venv that holds this Python's packages.

        The project itself is what lies in ~/leebert.
        """
        self.run(sys.executable, "-m", "venv", "--without-pip", f"{self.hosts.home}/venv")
        venv = self.home / "venv"
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "leebert.pth").write_text(f"{self.hosts.home}/leebert\n{sysconfig.get_path('purelib')}\n")
        for name in ("ray", "mlflow", "leebert-tune"):
            body = (Path(sysconfig.get_path("scripts")) / name).read_text().split("\n", 1)[1]
            (venv / "bin" / name).write_text(f"#!{self.hosts.home}/venv/bin/python\n{body}")
            (venv / "bin" / name).chmod(0o755)

    def run(
        self, *words: str, check: bool = True, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host to its end."""
        done = subprocess.run(
            self.command(*words, **environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {shlex.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *words: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in the host, its output going to a file."""
        with open(log, "wb") as file:
            return subprocess.Popen(
                self.command(*words, **environment), stdin=self.hosts.silence, stdout=file, stderr=subprocess.STDOUT,
                preexec_fn=_with_us,
            )  # fmt: skip


class Hosts:
    """Hosts by name on one bridge, as a context manager; `folder` is new, and removed at the end."""

    def __init__(self, folder: Path, *names: str, sshd: bool = False) -> None:
        self.folder = folder
        self.home = folder / "home"  # where every host sees its own
        self.home.mkdir(parents=True)
        self.silence, self.speaker = os.pipe()  # an input that says nothing and has no end
        self.switch = _new_network()
        _ip(self.switch, "link", "add", "bridge", "type", "bridge")
        _ip(self.switch, "link", "set", "bridge", "up")
        if sshd:
            self._ssh_files()
        self.all = {name: Host(self, name, number, sshd) for number, name in enumerate(names, start=11)}

    def _ssh_files(self) -> None:
        """One key for all: each host may enter every other."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")], check=True)
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/key\nAuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        )

    def __getitem__(self, name: str) -> Host:
        return self.all[name]

    def __enter__(self) -> Hosts:
        try:
            for host in self.all.values():
                host.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for host in self.all.values():
            if host.init:
                host.crash()
            os.close(host.network)
        for file in (self.switch, self.silence, self.speaker):
            os.close(file)
        shutil.rmtree(self.folder)


def seconds_until(happened: Callable[[], Any], within: float, what: str, every: float = 0.1) -> float:
    """Wait for something to become true; how long that took."""
    started = time.monotonic()
    while not happened():
        if time.monotonic() - started > within:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - started
