"""The process that forks the isolated ones: shared by threads, replaced if it dies, gone with its owner."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmrl.rewards.sandbox import SandboxError, run_program, starter

RIGHT = "def f(x): return x + 1\n"


def test_programs_of_many_threads_do_not_mix():
    def ask(number):
        return run_program(f"def f(x): return x + {number}\n", [f"assert f(1) == {1 + number}"], kind="function").status

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(24))) == {"passed"}


def test_a_starter_that_was_killed_is_replaced():
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    old = starter.STARTERS[0].process
    old.kill()
    old.wait()
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    assert starter.STARTERS[0].process.pid != old.pid


def test_an_interrupt_leaves_no_answer_for_another_request(monkeypatch):
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    own = starter.STARTERS[0]

    class Interrupted:
        def recv(self, size):
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(own_socket, name)

    own_socket = own.socket
    monkeypatch.setattr(own, "socket", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        own.ask({"wait": own.process.pid})
    monkeypatch.undo()
    with pytest.raises(SandboxError):
        own.ask({"wait": own.process.pid})
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    assert starter.STARTERS[0] is not own


def test_a_forked_process_makes_its_own():
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    starter._starting.acquire()  # as another thread may have at that moment
    try:
        child = os.fork()
        if not child:
            status = run_program(RIGHT, ["assert f(1) == 2"], kind="function").status
            starter.STARTERS[0].close()
            os._exit(0 if status == "passed" else 1)
    finally:
        starter._starting.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"


def test_it_ends_at_once_though_a_forked_process_holds_its_socket():
    assert run_program(RIGHT, ["assert f(1) == 2"], kind="function").status == "passed"
    own = starter.STARTERS.pop()
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        begin = time.monotonic()
        own.close()
        assert own.process.returncode == 0 and time.monotonic() - begin < 4
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_no_process_outlives_its_owner():
    code = (
        "from llmrl.rewards.sandbox import run_program, starter\n"
        "import os, threading\n"
        "run_program('def f(): pass', ['f()'], kind='function')\n"
        "print(starter.STARTERS[0].process.pid, flush=True)\n"
        "run_program('while True: pass', ['f()'], kind='function', timeout_s=60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    started = int(owner.stdout.readline())
    deadline = time.monotonic() + 30
    while not (inside := _children(started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert inside
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    while any(map(_lives, [started, *inside])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, [started, *inside]))


def test_an_exit_status_is_known_after_the_program_closed_everything():
    program = "import os, sys\nprint(3, flush=True)\nos._exit({})\n"
    for status, wanted in ((0, "passed"), (5, "runtime_error")):
        test = [{"input": "", "output": "3"}]
        assert run_program(program.format(status), test, kind="stdio").status == wanted


def test_a_script_that_closes_its_pipes_and_stays_is_out_of_time():
    program = "import os, time\nos.closerange(0, 64)\ntime.sleep(60)\n"
    begin = time.monotonic()
    assert run_program(program, [{"input": "", "output": ""}], kind="stdio", timeout_s=2).status == "timeout"
    assert time.monotonic() - begin < 30


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_helpers_of_this_file_see_this_process():
    assert _lives(os.getpid()) and not _lives(2**22 + 1)
