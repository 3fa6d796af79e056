"""The process that forks the isolated ones, so that no program waits for an interpreter to start: `start`.

One for each process that runs programs. It runs child.py's `serve`, never anything foreign, and ends with its owner.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).absolute().parent
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class SandboxError(Exception):
    """The sandbox itself failed: no isolation here, or a process that could not be started."""


class Starter:
    """The process that forks the isolated ones: one for each process that runs programs. It ends with its owner."""

    def __init__(self) -> None:
        self.lock, self.owner = threading.Lock(), os.getpid()
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(HERE / "child.py"), str(other.fileno())],
                stdin=subprocess.PIPE,  # pipes, so that sys.stdin and sys.stdout are those of a program with pipes
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(other.fileno(),),
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp", "PYTHONHASHSEED": "0", **_ONE_THREAD},
                cwd="/",
            )
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def cut(self) -> None:
        """Let it end, and with it what it started; for all processes that hold this end of the socket, forked ones too."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and wait for that."""
        if self.owner == os.getpid():
            self.cut()
            self.socket.close()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def ask(self, message: dict[str, Any], pipes: Sequence[int] = ()) -> dict[str, Any]:
        """The answer to a request of child.py's. Raises SandboxError if that process is gone."""
        with self.lock:
            try:
                socket.send_fds(self.socket, [json.dumps(message).encode()], pipes)
                data = self.socket.recv(1 << 12)
            except OSError as error:
                raise SandboxError(f"the process that starts programs: {error}") from error
            except BaseException:  # an interrupt: nobody may take the answer that is still to come for another's
                self.cut()
                raise
        if not data:
            raise SandboxError("the process that starts programs ended")
        return dict(json.loads(data))


STARTERS: list[Starter] = []  # at most one; a forked process makes its own
_starting = threading.Lock()


def _in_forked() -> None:
    """Forget the parent's starter, and a lock that another of its threads may have held."""
    global _starting
    _starting = threading.Lock()
    for starter in STARTERS:
        starter.socket.close()
    STARTERS.clear()


os.register_at_fork(after_in_child=_in_forked)


def start(config: dict[str, Any], pipes: Sequence[int]) -> tuple[int, Starter]:
    """The new process and who started it; a starter that is gone is replaced once."""
    for again in (True, False):
        with _starting:
            if not STARTERS:
                STARTERS.append(Starter())
                atexit.register(STARTERS[0].close)
            starter = STARTERS[0]
        try:
            return int(starter.ask(config, pipes)["pid"]), starter
        except SandboxError:
            with _starting:
                starter.close()
                STARTERS[:] = [one for one in STARTERS if one is not starter]
            if not again:
                raise
    raise AssertionError
