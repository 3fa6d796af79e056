"""The sandbox seen from outside: start one isolated process, exchange JSON lines under a deadline, kill it.

A ladder of isolation, best first. "namespaces": own user, mount, pid, network and ipc namespaces, a root of read-only
system folders with one small tmpfs, no capabilities, seccomp. "seccomp": no namespaces; another uid or Landlock, no
new processes, no sockets, limits. "none": limits only, used only if `Limits(isolation="none")` asks for it. If neither
of the first two works, running is refused. `isolation_report()` says which works here and why not.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import select
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmrl.rewards.sandbox.starter import SandboxError, start

START_S = 60.0
RUNGS = ("namespaces", "seccomp")
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class TimeUp(Exception):
    """The deadline passed."""


class Ended(Exception):
    """The process closed its end without a message."""


class TooMuch(Exception):
    """The process wrote more than the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one program. Memory is address space; output is what it may write to stdout or as results.

    packages: importable packages of this environment, beside the standard library, that programs and tests may use
    ("numpy"). isolation: "auto" takes the best rung that works here and refuses if none does; a rung's name insists on
    it; "none" runs with limits only (never for code you do not trust).
    """

    memory_mb: int = 1024
    output_mb: int = 8
    file_mb: int = 16
    packages: tuple[str, ...] = ()
    isolation: Literal["auto", "namespaces", "seccomp", "none"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.packages, str):
            raise ValueError(f"packages={self.packages!r} is a text; give a list of package names")
        object.__setattr__(self, "packages", tuple(self.packages))


@functools.cache
def visible_paths() -> tuple[str, ...]:
    """What a program can read: system libraries, the interpreter and its standard library, four devices."""
    wanted = [*_SYSTEM, *_DEVICES]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = {sysconfig.get_path("stdlib"), os.path.join(sys.base_exec_prefix, "lib", version)}
    library = sysconfig.get_config_var("LIBDIR")
    extra = {str(Path(path).resolve()) for path in (*stdlib, library) if path and os.path.isdir(path)}
    extra |= {path for path in stdlib if os.path.isdir(path)}
    wanted += sorted(p for p in extra if not any(p == s or p.startswith(s + "/") for s in _SYSTEM))
    kept: list[str] = []
    for path in wanted:
        if os.path.lexists(path) and not any(path.startswith(k + "/") for k in kept):
            kept.append(path)
    return tuple(kept)


@functools.cache
def package_places(names: tuple[str, ...]) -> tuple[str, ...]:
    """Folders and files that hold these packages. Raises SandboxError for one that is not installed here."""
    places: list[str] = []
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            raise SandboxError(f"packages: {name!r} is not installed here; install it, or leave it out")
        place = Path(
            next(iter(spec.submodule_search_locations or ())) if spec.submodule_search_locations else spec.origin or ""
        )
        libraries = place.with_name(f"{name}.libs")  # where wheels keep their shared libraries
        places += [str(place), *([str(libraries)] if libraries.is_dir() else [])]
    return tuple(places)


def _world_readable() -> bool:
    """Whether another user could read this interpreter's standard library."""
    return _open_to_all(sysconfig.get_path("stdlib"))


def _open_to_all(path: str) -> bool:
    place = Path(path).resolve()
    return all(p.stat().st_mode & 0o005 == 0o005 for p in (place, *place.parents))


class Box:
    """One isolated process and its two JSON-line pipes. Use through `open_box`."""

    def __init__(self, role: str, limits: Limits, rung: str, cpu_s: float, folder: str, *, stdio: bool) -> None:
        self.nonce, self.limit = secrets.token_hex(16), limits.output_mb << 20
        self.stdin = self.stdout = -1
        self._buffer = b""
        self.ended: int | None = None
        packages = package_places(limits.packages)
        if rung == "seccomp" and os.getuid() == 0 and not all(map(_open_to_all, packages)):
            raise SandboxError("packages: without namespaces another user runs the program, and may not read them")
        inner_in, self.requests = os.pipe()
        self.results, inner_out = os.pipe()
        config = {
            "role": role,
            "rung": rung,
            "nonce": self.nonce,
            "paths": [*visible_paths(), *(p for p in packages if not p.startswith(visible_paths()))],
            "imports": sorted({str(Path(place).parent) for place in packages}),
            "folder": folder,
            "drop_uid": _world_readable(),
            "limits": {
                "memory_bytes": limits.memory_mb << 20,
                "file_bytes": limits.file_mb << 20,
                "cpu_s": int(cpu_s) + 2,
            },
        }
        inner = [inner_in, inner_out]
        if stdio:
            (program_in, self.stdin), (self.stdout, program_out) = os.pipe(), os.pipe()
            inner += [program_in, program_out]
        try:
            self.pid, self.starter = start(config, inner)
        except SandboxError:
            self._close_pipes()
            raise
        finally:
            for end in inner:
                os.close(end)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.results, False)

    def wait_until_ready(self) -> None:
        """Wait for the isolated interpreter; its start does not count against the program's time."""
        try:
            message = self.receive(time.monotonic() + START_S)
        except (TimeUp, Ended) as error:
            raise SandboxError(f"the isolated interpreter did not start: {type(error).__name__}") from error
        if "no_isolation" in message:
            raise SandboxError(f"isolation failed: {message['no_isolation']}")

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """One JSON line in. Raises TimeUp, or Ended if the process is gone."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            wait([(self.requests, select.POLLOUT)], deadline)
            try:
                data = data[os.write(self.requests, data[: 1 << 16]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise Ended from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next JSON line that carries the nonce; others are noise. Raises TimeUp, Ended or TooMuch."""
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                message = self._trusted(line)
                if message is not None:
                    return message
                continue
            if len(self._buffer) > self.limit:
                raise TooMuch
            wait([(self.results, select.POLLIN)], deadline)
            with contextlib.suppress(BlockingIOError):
                part = os.read(self.results, 1 << 18)
                if not part:
                    raise Ended
                self._buffer += part

    def _trusted(self, line: bytes) -> dict[str, Any] | None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        good = isinstance(message, dict) and isinstance(message.get("nonce"), str)
        return message if good and secrets.compare_digest(message["nonce"].encode(), self.nonce.encode()) else None

    def status(self, deadline: float) -> int:
        """The exit status, once the process has ended; it stays known. Raises TimeUp."""
        while self.ended is None:
            self.ended = self.starter.ask({"wait": self.pid}).get("status")
            if self.ended is None and time.monotonic() > deadline:
                raise TimeUp
            if self.ended is None:
                time.sleep(0.001)
        return self.ended

    def end_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> None:
        """Kill the process group and wait; with its pid namespace everything in it dies too."""
        if self.ended is None:
            with contextlib.suppress(SandboxError):  # with its starter it is dead already
                self.starter.ask({"kill": self.pid})
        self._close_pipes()

    def _close_pipes(self) -> None:
        self.end_stdin()
        for pipe in (self.stdout, self.requests, self.results):
            if pipe >= 0:
                os.close(pipe)


def wait(pipes: list[tuple[int, int]], deadline: float) -> list[int]:
    """The file descriptors that are ready. Raises TimeUp at the deadline (on `time.monotonic()`)."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeUp
    poll = select.poll()
    for pipe, event in pipes:
        poll.register(pipe, event)
    ready = poll.poll(max(1, left * 1000))
    if not ready:
        raise TimeUp
    return [pipe for pipe, _ in ready]


@contextlib.contextmanager
def open_box(role: str, limits: Limits, rung: str, timeout_s: float, *, stdio: bool = False) -> Iterator[Box]:
    """A box that is ready, and that is killed, and whose folder is removed, at the end of the block."""
    folder = tempfile.mkdtemp(prefix="llmrl-box-") if rung != "namespaces" else "/tmp"
    try:
        if rung == "seccomp" and os.getuid() == 0 and _world_readable():
            os.chown(folder, 65534, 65534)
        box = Box(role, limits, rung, timeout_s, folder, stdio=stdio)
        try:
            box.wait_until_ready()
            yield box
        finally:
            box.close()
    finally:
        if rung != "namespaces":
            shutil.rmtree(folder, ignore_errors=True)


def probe(rung: str) -> str:
    """ "" if a program runs on this rung here, else why not."""
    if not sys.platform.startswith("linux"):
        return "only Linux has it"
    try:
        with open_box("function", Limits(), rung, 20.0) as box:
            deadline = time.monotonic() + 20
            box.send({"program": "def f():\n    return 1\n"}, deadline)
            first = box.receive(deadline)
            return "" if first.get("loaded") else str(first)
    except (TimeUp, Ended, OSError, SandboxError) as error:
        return f"{type(error).__name__}: {error}"


@functools.cache
def isolation_report() -> dict[str, str]:
    """Rung -> "" if it works on this machine, else what is missing. Probed once a process.

    >>> sorted(isolation_report())
    ['namespaces', 'seccomp']
    """
    return {rung: probe(rung) for rung in RUNGS}


@functools.cache
def _best() -> str:
    for rung in RUNGS:
        if not probe(rung):
            return rung
    return ""


def choose_rung(limits: Limits) -> str:
    """The rung to run on. Raises SandboxError if there is none that may be used."""
    if limits.isolation != "auto":
        if limits.isolation not in (*RUNGS, "none"):
            raise SandboxError(f"isolation={limits.isolation!r}; there are {('auto', *RUNGS, 'none')}")
        return limits.isolation
    best = _best()
    if not best:
        missing = "; ".join(f"{rung}: {why}" for rung, why in isolation_report().items())
        raise SandboxError(f"no isolation works here ({missing}); Limits(isolation='none') runs without any")
    return best
