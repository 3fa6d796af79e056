"""Stdio tests: run a script on one input, and compare what it printed with what was expected.

Comparisons: "strict" wants the same text but for line ends and white space at the end of lines and of the text; "apps"
follows the APPS benchmark's leniency: token by token, where two numbers are equal as numbers (1e-6 relative where the
expected one is a decimal).
"""

from __future__ import annotations

import contextlib
import decimal
import math
import os
import re
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from llmrl.rewards.sandbox.box import Box, Ended, Limits, TimeUp, TooMuch, open_box, wait

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")


def equal_strict(got: str, wanted: str) -> bool:
    """Same lines; trailing white space of a line and trailing empty lines do not count.

    >>> equal_strict("1 2 \\n3\\n\\n", "1 2\\n3"), equal_strict("1  2", "1 2")
    (True, False)
    """
    return _lines(got) == _lines(wanted)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def equal_apps(got: str, wanted: str) -> bool:
    """Same tokens, numbers as numbers: exactly, or with a relative tolerance where the expected token is a decimal.

    >>> equal_apps("1.0 YES", "1 YES"), equal_apps("1 2", "12"), equal_apps("0.33333333", "0.33333334")
    (True, False, True)
    >>> equal_apps("1000000.1", "1000000"), equal_apps("1000000.1", "1000000.0")
    (False, True)
    """
    a, b = got.split(), wanted.split()
    return len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b))


def _same_number(got: str, wanted: str) -> bool:
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(wanted)):
        return False
    if set(wanted) & set(".eE"):
        x, y = float(got), float(wanted)
        return math.isfinite(x) and math.isfinite(y) and math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9)
    return decimal.Decimal(got) == decimal.Decimal(wanted)


COMPARISONS: Mapping[str, Callable[[str, str], bool]] = {"strict": equal_strict, "apps": equal_apps}


def run_stdio_case(
    program: str, test: Mapping[str, Any], *, limits: Limits, rung: str, timeout_s: float, how: str
) -> tuple[str, str]:
    """(status, why) of one test in a fresh process."""
    with open_box("stdio", limits, rung, timeout_s, stdio=True) as box:
        deadline = time.monotonic() + timeout_s
        try:
            box.send({"program": program}, deadline)
            printed, status, why = _converse(box, str(test["input"]).encode(), limits.output_mb << 20, deadline)
        except TimeUp:
            return "timeout", "time is up"
        except Ended:
            return "runtime_error", "the program could not be started"
        except TooMuch:
            return "runtime_error", "too much output"
    if status != "ended":
        return status, why
    right = COMPARISONS[how](printed.decode(errors="replace"), str(test["output"]))
    return ("passed", "") if right else ("failed", f"it printed {printed[:120]!r}")


def _converse(box: Box, data: bytes, most: int, deadline: float) -> tuple[bytes, str, str]:
    """Feed stdin and collect stdout until the program closes it; (stdout, status, why)."""
    for pipe in (box.stdin, box.stdout):
        os.set_blocking(pipe, False)
    printed, left = b"", memoryview(data)
    if not left:
        box.end_stdin()
    while True:
        wanted = [(box.stdout, select.POLLIN)] + ([(box.stdin, select.POLLOUT)] if left else [])
        ready = wait(wanted, deadline)
        if left and box.stdin in ready:
            with contextlib.suppress(BlockingIOError):
                try:
                    left = left[os.write(box.stdin, left[: 1 << 16]) :]
                except BrokenPipeError:
                    left = memoryview(b"")
            if not left:
                box.end_stdin()
        if box.stdout in ready:
            with contextlib.suppress(BlockingIOError):
                part = os.read(box.stdout, 1 << 18)
                if not part:
                    break
                printed += part
        if len(printed) > most:
            raise TooMuch
    return (printed, *_how_it_ended(box, deadline))


def _how_it_ended(box: Box, deadline: float) -> tuple[str, str]:
    try:
        while True:
            message = box.receive(deadline)
            for key, status in (
                ("compile_error", "compile_error"),
                ("load_error", "runtime_error"),
                ("ended", "ended"),
            ):
                if key in message:
                    return status, str(message[key])
    except Ended:
        # It left by os._exit or was killed. What it printed counts only if it went by itself, with status 0.
        code = box.status(deadline)
        return ("ended", "") if code == 0 else ("runtime_error", f"it ended with status {code}")
