"""An engine in a child process that can be killed: deadlines, restarts, weights through shared memory.

The child dies with its parent, keeps vLLM's thread binding and memory policy out of the trainer, and starts while the
trainer loads its model. Weights move through one anonymous shared-memory file; requests and completions through a
socket pair that no other process can reach.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmrl.errors import EngineError
from llmrl.hardware import cores
from llmrl.memory import keep_freed_memory
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import ChecksumRequest, EngineSettings, LocalEngine, SleepingEngine, collect
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

ALIGN = 64
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Where one weight lies in the shared file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFaults:
    """Children that were replaced, and completions that had to be asked for again because of it."""

    restarts: int = 0
    regenerated: int = 0


class ProcessEngine:
    """Runs `settings` in a child. `stall_timeout_s` is how long the child may be silent before it is replaced.

    After `max_restarts` replacements in one call EngineError is raised with the end of the child's log, and at once if
    the very first child does not start. `log` is the file that receives the children's output, `environment` what is set
    for them besides `child_environment` (which device, say).
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        log: Path,
        start_timeout_s: float = 600.0,
        stall_timeout_s: float = 120.0,
        max_restarts: int = 3,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._environment = dict(environment or {})
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._max_restarts = max_restarts
        self._shared = os.memfd_create("llmrl-weights")
        self._slots: tuple[Slot, ...] = ()
        self._version = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._worked = False
        self._faults = EngineFaults()
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        assert self._process is not None
        return self._process.pid

    def take_faults(self) -> EngineFaults:
        """What happened since the last call."""
        faults, self._faults = self._faults, EngineFaults()
        return faults

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        waiting = dict(enumerate(requests))
        failures = 0
        while waiting:
            asked = 0
            try:
                self._wait_until_ready()
                order = list(waiting)
                self._send(("generate", [waiting[index] for index in order]))
                asked = len(order)
                while (reply := self._receive(self._stall_timeout_s)) != ("end",):
                    if reply[0] == "completion":
                        index = order[reply[1]]
                        del waiting[index]
                        asked -= 1
                        yield index, reply[2]
            except _ChildLost as lost:
                failures += 1
                self._replace(lost, failures, regenerated=asked)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._slots = _write_shared(self._shared, weights)
        self._version = version
        for failures in range(1, self._max_restarts + 2):
            try:
                self._wait_until_ready()
                self._send_weights()
                return
            except _ChildLost as lost:
                self._replace(lost, failures)

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        for failures in range(1, self._max_restarts + 2):
            try:
                self._wait_until_ready()
                self._send(("checksums", request))
                found: dict[str, int] = self._receive(self._stall_timeout_s)[1]
                return found
            except _ChildLost as lost:
                self._replace(lost, failures)
        raise AssertionError("the last failure raises")

    def sleep(self) -> None:
        try:
            self._wait_until_ready()
            self._send(("sleep",))
            self._receive(self._stall_timeout_s)
        except _ChildLost as lost:  # the next one starts awake and waits for weights like any other
            self._replace(lost, 1)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # A child that stops in the middle of a message must not hold the parent either.
        patience = struct.pack("ll", int(self._stall_timeout_s), int(self._stall_timeout_s % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, patience)
        self._connection = Connection(ours.detach())
        self._connection.send(("settings", self._settings))  # small enough to wait in the socket
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "llmrl.rollout.process", str(theirs.fileno()), str(self._shared)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), self._shared),
                env=child_environment(self._settings.threads) | self._environment,
                start_new_session=True,  # Ctrl-C is the trainer's to handle
            )
        theirs.close()
        self._ready = False

    def _wait_until_ready(self) -> None:
        if not self._ready:
            self._receive(self._start_timeout_s)
            self._ready = self._worked = True
            if self._slots:
                self._send_weights()

    def _send_weights(self) -> None:
        self._send(("load", self._slots, self._version))
        self._receive(self._stall_timeout_s)

    def _send(self, message: tuple[Any, ...]) -> None:
        assert self._connection is not None
        try:
            self._connection.send(message)
        except OSError as error:
            raise _ChildLost(f"died ({error})") from error

    def _receive(self, timeout_s: float) -> tuple[Any, ...]:
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout_s):
                raise _ChildLost(f"gave no sign of life for {timeout_s:g} s")
            reply: tuple[Any, ...] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _ChildLost("died") from error
        if reply[0] == "error":
            raise EngineError(f"{reply[1]}\n(engine log: {self._log})")
        return reply

    def _replace(self, lost: _ChildLost, failures: int, *, regenerated: int = 0) -> None:
        assert self._process is not None
        assert self._connection is not None
        self._process.kill()
        code = self._process.wait()
        self._connection.close()
        if failures > self._max_restarts or not self._worked:
            raise EngineError(
                f"the {self._settings.kind} engine {lost} (exit code {code}), replaced {failures - 1} times before; "
                f"the end of {self._log}:\n{_tail(self._log)}"
            )
        before = self._faults
        self._faults = EngineFaults(restarts=before.restarts + 1, regenerated=before.regenerated + regenerated)
        self._start()


class _ChildLost(Exception):
    """The child died or went silent."""


def child_environment(threads: int = 0) -> dict[str, str]:
    """The environment of an engine's process: its threads (0: all cores), and faster allocator and OpenMP if present."""
    env = dict(os.environ)
    env["OMP_NUM_THREADS"] = str(threads or cores())
    env["PYTHONUNBUFFERED"] = "1"
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        env.pop(name, None)  # the engine is no rank of the trainer's process group
    package_root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, env.get("PYTHONPATH", "")]))
    found = [path for path in (openmp_library(), tcmalloc_library()) if path]
    env["LD_PRELOAD"] = os.pathsep.join(filter(None, [*found, env.get("LD_PRELOAD", "")]))
    return env


def openmp_library() -> str | None:
    """Intel's OpenMP from the `intel-openmp` wheel, which vLLM's CPU build brings along."""
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(Path(f.locate()).resolve()) for f in files if f.name == "libiomp5.so"), None)


def tcmalloc_library() -> str | None:
    pattern = "libtcmalloc_minimal.so.4"
    roots = (Path("/usr/lib"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"))
    return next((str(root / pattern) for root in roots if (root / pattern).exists()), None)


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no log)"


def _write_shared(descriptor: int, weights: Iterable[tuple[str, Tensor]]) -> tuple[Slot, ...]:
    """Write weights as they come, so that a sender who gathers them need hold only a few at a time."""
    slots: list[Slot] = []
    end = 0
    for name, tensor in weights:
        nbytes = tensor.numel() * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        slots.append(Slot(name=name, dtype=dtype, shape=tuple(tensor.shape), offset=end, nbytes=nbytes))
        end = (end + nbytes + ALIGN - 1) // ALIGN * ALIGN
        _copy_in(descriptor, slots[-1], tensor)
    if os.fstat(descriptor).st_size < end:
        os.ftruncate(descriptor, end)
    return tuple(slots)


def _copy_in(descriptor: int, slot: Slot, tensor: Tensor) -> None:
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < slot.nbytes:  # one call writes 2 GiB at most
        done += os.pwrite(descriptor, data[done:], slot.offset + done)  # cheaper than a mapping's page faults


def _read_shared(descriptor: int, slots: Sequence[Slot]) -> Iterator[tuple[str, Tensor]]:
    import torch

    shared = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    whole = torch.frombuffer(shared, dtype=torch.uint8)
    for slot in slots:
        flat = whole[slot.offset : slot.offset + slot.nbytes].view(getattr(torch, slot.dtype))
        yield slot.name, flat.view(slot.shape)


def _serve(connection: Connection, shared: int) -> None:
    settings: EngineSettings = connection.recv()[1]
    if settings.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-settings.threads :])
    engine: LocalEngine = build_engine(settings)
    connection.send(("ready",))
    while True:
        message = connection.recv()
        if message[0] == "load":
            engine.load(_read_shared(shared, message[1]), version=message[2])
            connection.send(("loaded", message[2]))
        elif message[0] == "checksums":
            connection.send(("checksums", engine.checksums(message[1])))
        elif message[0] == "sleep":
            cast(SleepingEngine, engine).sleep()
            connection.send(("rested",))
        else:
            for item in engine.stream(message[1]):
                connection.send(("alive",) if item is None else ("completion", *item))
            connection.send(("end",))


def _main() -> None:
    keep_freed_memory()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(int(sys.argv[1]), False)
    try:
        _serve(connection, int(sys.argv[2]))
    except EOFError:
        return  # the parent closed its end
    except EngineError as error:
        connection.send(("error", str(error)))
    except Exception as error:  # the border of a process: the reason must reach the trainer
        connection.send(("error", f"the engine failed: {type(error).__name__}: {error}"))
        raise


if __name__ == "__main__":
    _main()
