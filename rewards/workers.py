"""Killable worker processes: fresh interpreters started by exec, asked over pipes, killed on a wall-clock deadline.

Never a fork of the calling process (which may hold torch, vLLM and their threads), and no signals or alarms: a caller
may be any thread of any process, a daemon process too. A worker dies with its parent (PR_SET_PDEATHSIG; all workers
are started from one long-lived thread, because the kernel ties that signal to the thread that started the child).

The child runs `module:function`, a `bytes -> bytes` handler; messages are a 4-byte length and the bytes. Its stdin and
stdout are moved away from file descriptors 0 and 1 before any other import, so that printing cannot spoil the protocol.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from llmrl.errors import ConfigError, LlmrlError

START_S = 60.0
_LARGEST = 1 << 30
_UNUSABLE = 0xFFFFFFFF  # in place of an answer's length: what follows says which library is missing
# Runs in the child before anything else; argv: handler, memory limit in bytes (0 for none), parent pid, import paths.
_BOOT = r"""
import os, sys
inp, out = os.dup(0), os.dup(1)
null = os.open(os.devnull, os.O_RDONLY); os.dup2(null, 0); os.dup2(2, 1)
import ctypes
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[3]): os._exit(1)
sys.path[:] = sys.argv[4:] + [p for p in sys.path if p not in sys.argv[4:]]
import resource
if int(sys.argv[2]): resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llmrl.rewards.workers import serve
serve(sys.argv[1], inp, out)
"""


class WorkerTimeout(Exception):
    """The worker did not answer by the deadline and was killed."""


class WorkerDied(Exception):
    """The worker ended without an answer."""


class WorkerUnusable(LlmrlError, WorkerDied):
    """No worker of this kind can work here: a library is missing, or the process cannot start. Never the input's fault."""


class _State:
    """What belongs to this process and must be made anew after a fork."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[tuple[Future[Worker], Worker]] | None = None
        self.workers: set[Worker] = set()

    def start(self, worker: Worker) -> None:
        """Start `worker` from the one starting thread. Raises WorkerDied if the system does not let it."""
        with self.lock:
            if self.jobs is None:
                self.jobs = queue.SimpleQueue()
                threading.Thread(target=self._starter, args=(self.jobs,), daemon=True, name="llmrl-workers").start()
        done: Future[Worker] = Future()
        self.jobs.put((done, worker))
        try:
            done.result(START_S)
        except (OSError, TimeoutError) as error:
            raise WorkerUnusable(f"a worker process could not be started: {error!r}") from error

    @staticmethod
    def _starter(jobs: queue.SimpleQueue[tuple[Future[Worker], Worker]]) -> None:
        while True:
            done, worker = jobs.get()
            try:
                worker._exec()
                done.set_result(worker)
            except BaseException as error:  # noqa: BLE001 - carried to the thread that asked
                done.set_exception(error)


_state = _State()


def _after_fork() -> None:
    """A forked child owns none of its parent's workers: close the pipes it inherited, kill nothing."""
    global _state
    for worker in list(_state.workers):
        worker._abandon()
    _state = _State()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _kill_all() -> None:
    for worker in list(_state.workers):
        worker.kill()


def import_paths() -> list[str]:
    """This process's import paths, absolute, the one that holds `llmrl` first."""
    home = str(Path(__file__).absolute().parent.parent)
    if Path(home).name == "llmrl":  # reached through the committed symlink
        home = str(Path(home).parent)
    return list(dict.fromkeys([home, *(os.path.abspath(path or os.curdir) for path in sys.path)]))


class Worker:
    """One child process. Not for use by two threads at once; `request` kills it when the deadline passes.

    wait: until its handler is imported; otherwise `ready` has to be called before the first request.
    """

    def __init__(self, handler: str, *, memory_bytes: int = 0, quiet: bool = True, wait: bool = True) -> None:
        self.handler, self.memory_bytes, self.quiet = handler, memory_bytes, quiet
        self.process: subprocess.Popen[bytes] | None = None
        self.state = _state
        self._prepared: set[bytes] = set()
        self._replies_due = 0
        self._starts_until = 0.0
        _state.start(self)
        self._prepare(b"")  # answered when the handler is imported
        if wait:
            self.ready(time.monotonic() + START_S)

    def _prepare(self, payload: bytes) -> None:
        """Send a request of the start; `ready` reads the reply."""
        assert self.process
        assert self.process.stdin
        self._starts_until = time.monotonic() + START_S
        self._prepared.add(payload)
        try:
            self._send(self.process.stdin.fileno(), struct.pack(">I", len(payload)) + payload, self._starts_until)
        except OSError as error:
            self.kill()
            raise WorkerDied(f"exit status {self.process.returncode}: {error}") from error
        self._replies_due += 1

    def ready(self, deadline: float, prepare: bytes = b"") -> None:
        """Wait until the worker has started and answered `prepare` (asked once a worker), at most until `deadline`.

        Raises WorkerTimeout when the deadline passes; the worker goes on starting and is only killed after START_S.
        Raises WorkerDied.
        """
        assert self.process
        assert self.process.stdout
        if prepare not in self._prepared:
            self._prepare(prepare)
        pipe = self.process.stdout.fileno()
        try:
            while self._replies_due:
                self._wait(pipe, select.POLLIN, deadline)
                self._receive(pipe, self._starts_until + 1.0)
                self._replies_due -= 1
        except WorkerTimeout:
            if time.monotonic() > self._starts_until:
                self.kill()
            raise
        except (OSError, EOFError) as error:
            self.kill()
            raise WorkerDied(f"exit status {self.process.returncode}: {error}") from error

    def _exec(self) -> None:
        command = [sys.executable, "-I", "-c", _BOOT, self.handler, str(self.memory_bytes), str(os.getpid())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command + import_paths(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self.quiet else None,
            bufsize=0,
            start_new_session=True,
            env=environment,
        )
        assert self.process.stdin
        assert self.process.stdout
        os.set_blocking(self.process.stdin.fileno(), False)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.state.workers.add(self)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def request(self, payload: bytes, deadline: float) -> bytes:
        """The handler's answer. `deadline` is on `time.monotonic()`. Raises WorkerTimeout or WorkerDied."""
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        try:
            self._send(self.process.stdin.fileno(), struct.pack(">I", len(payload)) + payload, deadline)
            return self._receive(self.process.stdout.fileno(), deadline)
        except (OSError, EOFError) as error:
            self.kill()
            raise WorkerDied(f"exit status {self.process.returncode}: {error}") from error
        except (WorkerTimeout, KeyboardInterrupt):
            self.kill()
            raise

    def _send(self, pipe: int, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(pipe, select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                view = view[os.write(pipe, view[: 1 << 16]) :]

    def _receive(self, pipe: int, deadline: float) -> bytes:
        size = struct.unpack(">I", self._read(pipe, 4, deadline))[0]
        if size == _UNUSABLE:
            size = struct.unpack(">I", self._read(pipe, 4, deadline))[0]
            missing = self._read(pipe, size, deadline).decode()
            self.kill()
            raise WorkerUnusable(f"{self.handler} cannot work here: {missing}; install llmrl with its dependencies")
        return self._read(pipe, size, deadline)

    def _read(self, pipe: int, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            self._wait(pipe, select.POLLIN, deadline)
            try:
                part = os.read(pipe, min(size, 1 << 20))
            except BlockingIOError:
                continue
            if not part:
                raise EOFError("it closed its pipe")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    @staticmethod
    def _wait(pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(max(1, left * 1000)):
            raise WorkerTimeout

    def kill(self) -> None:
        """SIGKILL the worker and whatever it started in its session; wait for it; close the pipes."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()
        self.state.workers.discard(self)

    def _close(self) -> None:
        assert self.process
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _abandon(self) -> None:
        if self.process is not None:
            self._close()
            self.process.returncode = 0  # not ours to wait for


class WorkerPool:
    """At most `size` workers of one kind, started when first needed; for any number of threads, and after a fork."""

    def __init__(self, handler: str, *, size: int, memory_bytes: int = 0, quiet: bool = True) -> None:
        self.handler, self.size, self.memory_bytes, self.quiet = handler, size, memory_bytes, quiet
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._slots = threading.BoundedSemaphore(self.size)

    @contextlib.contextmanager
    def worker(self, *, wait: bool = True) -> Iterator[Worker]:
        """A worker for the caller alone; waits while all are taken. A dead one is not given back. wait: see `Worker`."""
        if self._pid != os.getpid():
            self._reset()
        with self._slots:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.alive:
                if worker is not None:
                    worker.kill()
                worker = Worker(self.handler, memory_bytes=self.memory_bytes, quiet=self.quiet, wait=wait)
            self._busy.add(worker)
            try:
                yield worker
            finally:
                self._busy.discard(worker)
                if worker.alive:
                    with self._lock:
                        self._idle.append(worker)

    def request(self, payload: bytes, timeout_s: float, *, prepare: bytes = b"") -> bytes:
        """One request, answered within `timeout_s`, the start of a worker included where one is needed.

        Waiting for a free worker does not count. prepare: a request that belongs to the start, asked once a worker. A
        start that takes too long raises WorkerTimeout and goes on for the next request; work that does is killed, and
        a new worker starts at once. Retries once on WorkerDied; raises WorkerUnusable if none can start or a library lacks.
        """
        deadline = 0.0
        for attempt in (1, 2):
            started = False
            try:
                with self.worker(wait=False) as worker:
                    deadline = deadline or time.monotonic() + timeout_s
                    try:
                        worker.ready(deadline, prepare)
                        started = True
                        return worker.request(payload, deadline)
                    except WorkerTimeout:
                        if not worker.alive:
                            self._start_another(prepare)
                        raise
            except WorkerUnusable:
                raise
            except WorkerDied as error:
                if attempt == 2 and not started:
                    raise WorkerUnusable(f"{self.handler} ends while it starts: {error}") from error
                if attempt == 2:
                    raise
        raise AssertionError

    def _start_another(self, prepare: bytes) -> None:
        """A worker in place of one that was killed, so that the next request does not wait for its whole start."""
        with contextlib.suppress(WorkerDied):
            worker = Worker(self.handler, memory_bytes=self.memory_bytes, quiet=self.quiet, wait=False)
            if prepare:
                worker._prepare(prepare)
            with self._lock:
                self._idle.append(worker)

    def close(self) -> None:
        """Kill all workers; one that is busy raises WorkerDied where it is waited for."""
        if self._pid != os.getpid():
            return self._reset()
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in [*idle, *self._busy]:
            worker.kill()


def serve(handler: str, inp: int, out: int) -> None:
    """The child's loop: read a request, call the handler, write its answer; ends when the parent closes the pipe."""
    from llmrl.importing import load

    sys.setrecursionlimit(20_000)
    threading.stack_size(256 << 20)

    def loop() -> None:
        with os.fdopen(inp, "rb") as source, os.fdopen(out, "wb") as target:
            while len(head := source.read(4)) == 4:
                size = struct.unpack(">I", head)[0]
                if size > _LARGEST:
                    return
                payload, mark = source.read(size), b""
                try:
                    function = load(handler, key="handler")
                    answer = function(payload) if size else b"ready"
                except (ImportError, ConfigError) as error:
                    answer, mark = f"{type(error).__name__}: {error}".encode(), struct.pack(">I", _UNUSABLE)
                target.write(mark + struct.pack(">I", len(answer)) + answer)
                target.flush()

    thread = threading.Thread(target=loop)  # for its larger stack
    thread.start()
    thread.join()
