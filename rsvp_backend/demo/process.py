"""Child processes of the demo: started with a log file, waited for with progress in words, stopped as a group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

LOOPBACK = "127.0.0.1"
Say = Callable[[str], None]
"""Takes one line of progress for the person who waits."""
Command = Sequence[str | Path]

_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")


class ChildError(RuntimeError):
    """A child process ended or did not get ready; the message quotes the end of its log."""


def clean_env(extra: Mapping[str, str]) -> dict[str, str]:
    """A small environment plus ``extra``: a stray HOST, PORT or DEBUG of the caller's shell never reaches a child."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | dict(extra)


def free_port(preferred: int) -> int:
    """``preferred`` if nothing listens there on any address, else a port that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            if port and probe.connect_ex((LOOPBACK, port)) == 0:
                continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return int(listener.getsockname()[1])
    raise ChildError(f"no free port: {preferred} is taken and the system gave no other")


def answers(url: str, timeout_s: float = 5.0) -> bool:
    """Whether ``url`` on this machine answers with a 2xx; proxies of the environment are not asked."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=timeout_s) as response:
            return bool(200 <= response.status < 300)
    except (URLError, OSError):
        return False


class Child:
    """One child in a process group of its own, its output in ``log``. Use `stop`, also after a failure."""

    def __init__(self, name: str, command: Command, env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches only the demo, which then stops its children in order.
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def finish(self, timeout_s: float) -> None:
        """Wait for the end of a child that ends by itself. Raises `ChildError` on a bad exit status or no end."""
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise ChildError(f"{self.name} did not finish within {timeout_s:.0f} s.\n{self.tail()}") from None
        if status != 0:
            raise ChildError(f"{self.name} ended with status {status}.\n{self.tail()}")

    def wait_until_ready(self, ready: Callable[[], bool], timeout_s: float, say: Say, every_s: float = 15.0) -> None:
        """Poll ``ready`` and say every ``every_s`` that it still waits. Raises `ChildError` on an end or a delay."""
        start = told = time.monotonic()
        while not ready():
            now = time.monotonic()
            if not self.running:
                raise ChildError(f"{self.name} ended with status {self._popen.returncode}.\n{self.tail()}")
            if now - start > timeout_s:
                raise ChildError(f"{self.name} was not ready after {timeout_s:.0f} s.\n{self.tail()}")
            if now - told >= every_s:
                told = now
                say(f"... waiting for {self.name} ({now - start:.0f} s so far)")
            time.sleep(0.3)

    def tail(self, lines: int = 15) -> str:
        """The end of the log, with its path."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([f"The end of {self.log}:", *(f"  {line}" for line in text.splitlines()[-lines:])])

    def stop(self, grace_s: float = 10.0) -> None:
        """End the whole group: politely first, by force after ``grace_s``. Does nothing if it has ended."""
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if not self.running:
                return
            try:
                os.killpg(self._popen.pid, number)
            except ProcessLookupError:
                return
            try:
                self._popen.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
