import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmrl.rewards.workers import Worker, WorkerDied, WorkerPool, WorkerTimeout, WorkerUnusable

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _handlers_importable(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_messages_of_any_size_come_back_and_printing_does_not_spoil_them():
    pool = WorkerPool("tests_handlers:noisy", size=1)
    data = os.urandom(3_000_000)
    assert pool.request(data, 10) == data[::-1]
    pool.close()


@pytest.mark.parametrize("handler", ["hang", "spin"])
def test_a_worker_past_its_deadline_is_killed_and_replaced(handler):
    worker = Worker(f"tests_handlers:{handler}")
    start = time.monotonic()
    with pytest.raises(WorkerTimeout):
        worker.request(b"x", time.monotonic() + 0.3)
    assert time.monotonic() - start < 3
    assert not alive(worker.pid)


def test_a_dead_worker_raises_and_a_pool_goes_on_with_a_new_one():
    pool = WorkerPool("tests_handlers:die", size=1)
    with pytest.raises(WorkerDied, match="exit status 3"):
        pool.request(b"x", 5)
    good = WorkerPool("tests_handlers:pid", size=1)
    first = int(good.request(b"x", 5))
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    second = int(good.request(b"x", 5))
    assert first != second
    good.close()
    assert not alive(second)


def test_workers_started_by_short_lived_threads_outlive_them():
    pool = WorkerPool("tests_handlers:pid", size=1)
    seen = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: seen.append(pool.request(b"x", 10)))
        thread.start()
        thread.join()
        time.sleep(0.1)
    assert seen[0] == seen[1]
    pool.close()


def test_workers_die_with_a_killed_parent_even_while_busy():
    code = (
        "import sys, threading, time; sys.path.insert(0, sys.argv[1])\n"
        "from llmrl.rewards.workers import Worker\n"
        "idle, busy = Worker('tests_handlers:echo'), Worker('tests_handlers:spin')\n"
        "threading.Thread(target=lambda: busy.request(b'x', time.monotonic() + 60)).start()\n"
        "print(idle.pid, busy.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, HERE], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_a_slow_start_counts_as_time_and_goes_on_for_the_next_request():
    pool = WorkerPool("tests_handlers:slow_start", size=1)
    pool.request(b"x", 30)  # the worker itself is there
    start = time.monotonic()
    with pytest.raises(WorkerTimeout):
        pool.request(b"x", 0.5, prepare=b"prepare")
    assert time.monotonic() - start < 1.5
    assert pool.request(b"x", 60, prepare=b"prepare") == b"prepared once"
    assert pool.request(b"x", 5, prepare=b"prepare") == b"prepared once"
    pool.close()


def test_a_system_that_cannot_start_a_worker_or_lacks_a_library_is_told_and_not_taken_for_a_dead_worker(monkeypatch):
    with pytest.raises(WorkerUnusable, match="a_library_that_nobody_has"):
        WorkerPool("tests_handlers:missing", size=1).request(b"x", 5)
    with pytest.raises(WorkerUnusable, match="no_such_handlers"):
        WorkerPool("no_such_handlers:handle", size=1).request(b"x", 5)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(WorkerUnusable, match="could not be started"):
        WorkerPool("tests_handlers:pid", size=1).request(b"x", 5)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerUnusable, match="ends while it starts"):
        WorkerPool("tests_handlers:pid", size=1).request(b"x", 5)
