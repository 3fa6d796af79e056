"""Starting what was planned, on this machine: the child's output is ours, signals are passed on, its end is our end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llmrl.launcher.command import Command

PASSED_ON = (signal.SIGINT, signal.SIGTERM)


def run(command: Command) -> int:
    """Run `command` to its end and return its exit code.

    The first Ctrl-C or SIGTERM goes to the child, which hands it to its processes: they finish their step and save. The
    second goes to every process below it and stops them at once. torchrun ends with code 1 however its processes ended;
    a child that was told to stop and did not end with 0 counts as stopped by that signal: 130 or 143.
    """
    child = subprocess.Popen(
        command.arguments,
        env={**os.environ, **command.environment},
        start_new_session=True,  # Ctrl-C reaches it once, from here
    )
    with _passing_on(child) as received:
        code = child.wait()
    if received and code != 0:
        return 128 + received[0]
    return code if code >= 0 else 128 - code


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            child.send_signal(number)
        else:
            _send_to_all(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_to_all(pid: int, number: int) -> None:
    import psutil

    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return  # it ended meanwhile
    for process in family:
        if process.is_running():
            process.send_signal(number)
