"""Run one program against its tests in the sandbox: `run_program`, the function that the rewards call.

Function tests: `assert f(1) == 2` and `[arguments, expected]` are split, so that the candidate's process is only asked
for `f(1)` and the value is compared here, on exact builtin types. Any other test code runs in a second sandboxed
process without candidate code, where the program's functions are stubs that send each call to the candidate. Either
way expected values never enter the candidate's process, and its exit status, stdout and overridden operators decide
nothing. Stdio tests: one fresh process a test; its stdout is compared here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from llmrl.rewards.sandbox.box import (
    START_S,
    Box,
    Ended,
    Limits,
    TimeUp,
    TooMuch,
    choose_rung,
    open_box,
)
from llmrl.rewards.sandbox.plan import Call, Script, plan_tests
from llmrl.rewards.sandbox.starter import SandboxError
from llmrl.rewards.sandbox.stdio import COMPARISONS, run_stdio_case
from llmrl.rewards.sandbox.values import decode, encode

Status = Literal["passed", "failed", "runtime_error", "compile_error", "timeout", "harness_error"]
MOST_CALLS = 100_000
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # cannot be written, or steers a terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """status: "passed" only if every test passed; else of the first test that did not, or of the whole program.

    per_test: one status a test, in order ("not_run" after a program that could not go on). detail: a short reason.
    isolation: the rung it ran on ("namespaces" | "seccomp" | "none", "" if it never ran).
    """

    status: Status
    passed: int
    total: int
    per_test: tuple[str, ...] = ()
    detail: str = ""
    isolation: str = ""


def run_program(
    program: str,
    tests: Sequence[Any],
    *,
    kind: Literal["function", "stdio"],
    entry_point: str | None = None,
    timeout_s: float = 4.0,
    limits: Limits | None = None,
    comparison: Literal["strict", "apps"] = "strict",
    setup: str = "",
) -> ProgramResult:
    """Run `program` against `tests`; never raises for what the program does.

    tests: for kind "function" assert strings (any test code, if need be) or `[arguments, expected]` pairs, which need
    `entry_point`; for kind "stdio" mappings with "input" and "output". timeout_s: wall clock, of all function tests
    together, of each stdio test. comparison: of stdout, "strict" (equal but for line ends and trailing white space) or
    "apps" (token by token, numbers as numbers). setup: test code that runs before each assert (imports, constants).
    A test list that is empty or malformed, and missing isolation, are "harness_error".
    """
    limits, program = limits or Limits(), program.removeprefix("\ufeff")  # a byte order mark is no character
    try:
        if not tests:
            raise SandboxError("there are no tests")
        if comparison not in COMPARISONS:
            raise SandboxError(f"comparison={comparison!r}; there are {sorted(COMPARISONS)}")
        rung = choose_rung(limits)
        if kind == "stdio":
            return _run_stdio(program, tests, limits, rung, timeout_s, comparison)
        if kind != "function":
            raise SandboxError(f"kind={kind!r}; there are 'function' and 'stdio'")
        return _run_function(program, plan_tests(tests, entry_point, setup), limits, rung, timeout_s)
    except SandboxError as error:
        return ProgramResult(status="harness_error", passed=0, total=len(tests), detail=str(error))
    except OSError as error:
        return ProgramResult(status="harness_error", passed=0, total=len(tests), detail=f"the sandbox: {error}")


# -- function tests ----------------------------------------------------------------------------------------------------
class OutOfTurn(Exception):
    """The program's process sent something else than the answer to what it was asked."""


def _of_form(answer: dict[str, Any], *, call: bool) -> dict[str, Any]:
    """The answer without the nonce, if it has one of the forms that there are; else raises OutOfTurn."""
    answer = {key: value for key, value in answer.items() if key != "nonce"}
    keys = set(answer)
    error = keys == {"error", "text", "kinds"} and isinstance(answer["error"], str) and isinstance(answer["text"], str)
    error = error and isinstance(answer["kinds"], list) and all(isinstance(kind, str) for kind in answer["kinds"])
    value = keys == {"value"}
    if call and keys == {"value", "args"}:
        value = answer["value"] is None and isinstance(answer["args"], dict)
    if call and keys == {"value", "same"}:
        value = isinstance(answer["value"], dict) and type(answer["same"]) is int and answer["same"] >= 0
    back = keys == {"callback", "do", "args", "kwargs"} and isinstance(answer["do"], str)
    back = back and type(answer["callback"]) is int and isinstance(answer["args"], list)
    if not (error or value or (back and isinstance(answer["kwargs"], dict))):
        raise OutOfTurn(f"the program's process sent {sorted(keys)}")
    return answer


class _Candidate:
    """The candidate's process, asked for calls."""

    def __init__(self, box: Box, deadline: float) -> None:
        self.box, self.deadline, self.number = box, deadline, 0

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.number += 1
        if self.number > MOST_CALLS and message["do"] == "returned":
            raise OutOfTurn(f"the program asked more than {MOST_CALLS} questions")
        if self.number > MOST_CALLS:
            raise SandboxError(f"a test made more than {MOST_CALLS} calls")
        self.box.send({**message, "id": self.number}, self.deadline)
        answer = self.box.receive(self.deadline)
        if answer.pop("id", None) != self.number:
            raise OutOfTurn("the program's process answered what it was not asked")
        return _of_form(answer, call=message["do"] in ("call", "returned"))


def _run_function(
    program: str, plan: Sequence[Call | Script], limits: Limits, rung: str, timeout_s: float
) -> ProgramResult:
    per_test: list[str] = []
    with ExitStack() as stack:
        box = stack.enter_context(open_box("function", limits, rung, timeout_s))
        tester = None
        if any(isinstance(test, Script) for test in plan):
            tester_limits = Limits(memory_mb=2048, packages=limits.packages)
            tester = stack.enter_context(open_box("tester", tester_limits, rung, timeout_s))
            tester.send({}, time.monotonic() + START_S)
        deadline = time.monotonic() + timeout_s
        status, detail = _load(box, program, deadline)
        if status:
            return _outcome([status] + ["not_run"] * (len(plan) - 1), detail, rung)
        candidate = _Candidate(box, deadline)
        for test in plan:
            verdict, why, dead = _one_test(test, candidate, tester, deadline)
            per_test.append(verdict)
            detail = detail or (why if verdict != "passed" else "")
            if dead:
                break
    per_test += ["not_run"] * (len(plan) - len(per_test))
    return _outcome(per_test, detail, rung)


def _outcome(per_test: list[str], detail: str, rung: str) -> ProgramResult:
    passed = per_test.count("passed")
    status: Any = "passed" if passed == len(per_test) else next(s for s in per_test if s != "passed")
    shown = _UNPRINTABLE.sub(lambda m: m.group().encode("unicode_escape").decode(), detail)
    return ProgramResult(
        status=status, passed=passed, total=len(per_test), per_test=tuple(per_test), detail=shown, isolation=rung
    )


def _load(box: Box, program: str, deadline: float) -> tuple[Any, str]:
    """("", "") once the program is loaded, else its status and why."""
    try:
        box.send({"program": program}, deadline)
        first = box.receive(deadline)
    except TimeUp:
        return "timeout", "the program did not finish loading in time"
    except Ended:
        return "runtime_error", "the program ended while it was loaded"
    except TooMuch:
        return "runtime_error", "too much output"
    if "compile_error" in first:
        return "compile_error", str(first["compile_error"])
    if "load_error" in first:
        return "runtime_error", str(first["load_error"])
    return "", ""


def _one_test(test: Call | Script, candidate: _Candidate, tester: Box | None, deadline: float) -> tuple[str, str, bool]:
    """(status, why, whether the program cannot go on)."""
    try:
        if isinstance(test, Call):
            return (*_run_call(test, candidate), False)
        assert tester is not None
        return (*_run_script(test, candidate, tester, deadline), False)
    except TimeUp:
        return "timeout", "time is up", True
    except Ended:
        return "runtime_error", "the program ended before the test did", True
    except TooMuch:
        return "runtime_error", "too much output", True
    except OutOfTurn as error:
        return "runtime_error", str(error), True


def _run_call(test: Call, candidate: _Candidate) -> tuple[str, str]:
    message = {
        "do": "call",
        "name": test.name,
        "args": [encode(arg) for arg in test.args],
        "kwargs": {key: encode(arg) for key, arg in test.kwargs.items()},
    }
    answer = candidate.ask(message)
    if "callback" in answer:
        raise OutOfTurn("the program's process asked where it should have answered")
    if "error" in answer:
        return "runtime_error", f"{answer['error']}: {answer.get('text', '')}"[:300]
    try:
        value = decode(answer["value"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError, MemoryError) as error:
        return "failed", f"the result is not a plain value: {error}"[:300]
    if _equal(value, test.expected):
        return "passed", ""
    return "failed", f"{test.name} gave {_shown(value)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:120]
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"


def _equal(value: Any, expected: Any) -> bool:
    """Python's == on exact builtin and standard types (so 1 == 1.0, [1] != (1,)); what cannot be compared is unequal."""
    try:
        return bool(value == expected)
    except (ArithmeticError, RecursionError):  # a signalling NaN compares with nothing
        return False


def _run_script(test: Script, candidate: _Candidate, tester: Box, deadline: float) -> tuple[str, str]:
    start = {"source": test.source, "stubs": test.stubs, "library": test.library, "open": test.open}
    said = start
    while True:
        try:
            tester.send(said, deadline)
            message = tester.receive(deadline)
        except Ended:
            if said is start:
                raise SandboxError("the process that runs the tests died") from None
            # Of what the program handed over: it must not get out of a verdict by breaking the tests.
            raise OutOfTurn("the process that runs the tests died of what the program answered") from None
        if message.get("do") == "verdict":
            if message["verdict"] == "harness_error":
                raise SandboxError(f"a test cannot run: {message['text']}")
            return message["verdict"], message["text"]
        said = candidate.ask({key: value for key, value in message.items() if key != "nonce"})


# -- stdio tests -------------------------------------------------------------------------------------------------------
def _run_stdio(
    program: str, tests: Sequence[Any], limits: Limits, rung: str, timeout_s: float, comparison: str
) -> ProgramResult:
    per_test: list[str] = []
    detail = ""
    for test in tests:
        if not isinstance(test, Mapping) or not {"input", "output"} <= set(test):
            raise SandboxError(f"a stdio test must have input and output, got {str(test)[:80]!r}")
        status, why = run_stdio_case(program, test, limits=limits, rung=rung, timeout_s=timeout_s, how=comparison)
        per_test.append(status)
        detail = detail or why
        if status == "compile_error":
            break
    per_test += ["not_run"] * (len(tests) - len(per_test))
    return _outcome(per_test, detail, rung)
