"""Code reward: run a program against tests in the sandbox. `run_program`, and `CodeTests` as a Reward.

Function tests: `assert f(1) == 2` and `[arguments, expected]` are split, so that the candidate's process is only asked
for `f(1)` and the value is compared here, on exact builtin types. Any other test code runs in a second sandboxed
process without candidate code, where the program's functions are stubs that send each call to the candidate. Either
way expected values never enter the candidate's process, and its exit status, stdout and overridden operators decide
nothing. Stdio tests: one fresh process a test; its stdout is compared here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrl.rewards.border import failed
from llmrl.rewards.code_plan import Call, Script, plan_tests
from llmrl.rewards.sandbox import (
    START_S,
    Box,
    Ended,
    Limits,
    SandboxError,
    TimeUp,
    TooMuch,
    choose_rung,
    open_box,
    runner_source,
)
from llmrl.rewards.sandbox_values import decode, encode
from llmrl.rewards.stdio_compare import COMPARISONS, run_stdio_case
from llmrl.rewards.validation import expect
from llmrl.types import Score, StatusKind, Trajectory

Status = Literal["passed", "failed", "runtime_error", "compile_error", "timeout", "harness_error"]
MOST_CALLS = 100_000
TAMPERING = re.compile(
    r"os\._exit|sys\.exit|\b__eq__\b|\bsettrace\b|_getframe|gc\.get_|/proc/|\bctypes\b|\bsubprocess\b|__subclasses__"
    r"|\bconftest\b|sitecustomize|\bexcepthook\b|\batexit\b|builtins\.|\bunittest\b|\bpytest\b|f_back|f_globals"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOutcome:
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
) -> CodeOutcome:
    """Run `program` against `tests`; never raises for what the program does.

    tests: for kind "function" assert strings (any test code, if need be) or `[arguments, expected]` pairs, which need
    `entry_point`; for kind "stdio" mappings with "input" and "output". timeout_s: wall clock, of all function tests
    together, of each stdio test. comparison: of stdout, "strict" (equal but for line ends and trailing white space) or
    "apps" (token by token, numbers as numbers). setup: test code that runs before each assert (imports, constants).
    A test list that is empty or malformed, and missing isolation, are "harness_error".
    """
    limits = limits or Limits()
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
        return CodeOutcome(status="harness_error", passed=0, total=len(tests), detail=str(error))
    except OSError as error:
        return CodeOutcome(status="harness_error", passed=0, total=len(tests), detail=f"the sandbox: {error}")


# -- function tests ----------------------------------------------------------------------------------------------------
class _Candidate:
    """The candidate's process, asked for calls."""

    def __init__(self, box: Box, deadline: float) -> None:
        self.box, self.deadline, self.number = box, deadline, 0

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.number += 1
        if self.number > MOST_CALLS:
            raise SandboxError(f"a test made more than {MOST_CALLS} calls")
        self.box.send({**message, "id": self.number}, self.deadline)
        while True:
            answer = self.box.receive(self.deadline)
            if answer.get("id") == self.number:
                return answer


def _run_function(
    program: str, plan: Sequence[Call | Script], limits: Limits, rung: str, timeout_s: float
) -> CodeOutcome:
    per_test: list[str] = []
    with ExitStack() as stack:
        box = stack.enter_context(open_box("function", limits, rung, timeout_s))
        tester = None
        if any(isinstance(test, Script) for test in plan):
            tester = stack.enter_context(open_box("tester", Limits(memory_mb=2048), rung, timeout_s))
            tester.send({"runner": runner_source("tester")}, time.monotonic() + START_S)
        deadline = time.monotonic() + timeout_s
        status, detail = _load(box, program, deadline)
        if status:
            return CodeOutcome(
                status=status,
                passed=0,
                total=len(plan),
                per_test=tuple(status if i == 0 else "not_run" for i in range(len(plan))),
                detail=detail,
                isolation=rung,
            )
        candidate = _Candidate(box, deadline)
        for test in plan:
            verdict, why, dead = _one_test(test, candidate, tester, deadline)
            per_test.append(verdict)
            detail = detail or (why if verdict != "passed" else "")
            if dead:
                break
    per_test += ["not_run"] * (len(plan) - len(per_test))
    return _outcome(per_test, detail, rung)


def _outcome(per_test: list[str], detail: str, rung: str) -> CodeOutcome:
    passed = per_test.count("passed")
    status: Any = "passed" if passed == len(per_test) else next(s for s in per_test if s != "passed")
    return CodeOutcome(
        status=status, passed=passed, total=len(per_test), per_test=tuple(per_test), detail=detail, isolation=rung
    )


def _load(box: Box, program: str, deadline: float) -> tuple[Any, str]:
    """("", "") once the program is loaded, else its status and why."""
    try:
        box.send({"runner": runner_source(), "program": program}, deadline)
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


def _run_call(test: Call, candidate: _Candidate) -> tuple[str, str]:
    message = {
        "do": "call",
        "name": test.name,
        "args": [encode(arg) for arg in test.args],
        "kwargs": {key: encode(arg) for key, arg in test.kwargs.items()},
    }
    answer = candidate.ask(message)
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
    """Python's == on exact builtin types (so 1 == 1.0, [1] != (1,))."""
    try:
        return bool(value == expected)
    except RecursionError:
        return False


def _run_script(test: Script, candidate: _Candidate, tester: Box, deadline: float) -> tuple[str, str]:
    start = {"source": test.source, "stubs": test.stubs, "library": test.library}
    try:
        tester.send(start, deadline)
        while True:
            message = tester.receive(deadline)
            if message.get("do") == "verdict":
                return message["verdict"], message["text"]
            answer = candidate.ask({key: value for key, value in message.items() if key != "nonce"})
            tester.send({key: value for key, value in answer.items() if key not in ("nonce", "id")}, deadline)
    except Ended:
        if candidate.box.process.poll() is None and tester.process.poll() is not None:
            raise SandboxError("the process that runs the tests died") from None
        raise


# -- stdio tests -------------------------------------------------------------------------------------------------------
def _run_stdio(
    program: str, tests: Sequence[Any], limits: Limits, rung: str, timeout_s: float, comparison: str
) -> CodeOutcome:
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


# -- the reward --------------------------------------------------------------------------------------------------------
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


def extract_program(text: str) -> str | None:
    """The program of a completion: its last ```python block, else its last block, else all of it if it has no fence.

    Only what follows the last `</think>` counts. None if a fence is opened and not closed, or nothing is there.
    """
    if "<think>" in text and "</think>" not in text:
        return None
    text = text.rpartition("</think>")[2]
    blocks = [(m.group(2).lower(), m.group(3)) for m in _FENCE.finditer(text)]
    named = [code for language, code in blocks if language in ("python", "py", "python3")]
    if named or blocks:
        return named[-1] if named else blocks[-1][1]
    if "```" in text or not text.strip():
        return None
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """1.0 if the completion's program passes all tests of its row, else 0.0 (or the share passed, or CodeRL's levels).

    The tests are `prompt.columns["tests"]` (for kind "function" also entry_point and setup, where the row has them).
    grade: "all" | "share" | "coderl" (-1 compile error, -0.6 runtime error or time-out, -0.3 failed, 1 passed). prefix:
    column whose text is put before the program, as HumanEval's prompt. harness errors are errors, never a 0.
    Flags: the outcome's status, "no_program", "truncated", "test_tampering" (it names what tests are tampered with).
    """

    kind: Literal["function", "stdio"] = "function"
    grade: Literal["all", "share", "coderl"] = "all"
    comparison: Literal["strict", "apps"] = "strict"
    timeout_s: float = 4.0
    limits: Limits = field(default_factory=Limits)
    tests: str = "tests"
    prefix: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.limits, Mapping):
            object.__setattr__(self, "limits", Limits(**self.limits))
        if self.grade not in ("all", "share", "coderl") or self.kind not in ("function", "stdio"):
            raise ValueError(f"kind={self.kind!r} with grade={self.grade!r} is not known")

    def __call__(self, trajectory: Trajectory) -> Score:
        columns = trajectory.prompt.columns
        tests = columns.get(self.tests)
        if not tests:
            return Score(value=None, reason=f"the row has no {self.tests!r}", flags=("no_tests",))
        flags = list(self._flags(trajectory))
        program = extract_program(trajectory.text)
        if program is None:
            worst = -1.0 if self.grade == "coderl" else 0.0
            return Score(value=worst, reason="no program in the completion", flags=(*flags, "no_program"))
        outcome = run_program(
            str(columns.get(self.prefix, "")) + program if self.prefix else program,
            list(tests),
            kind=self.kind,
            entry_point=columns.get("entry_point") or None,
            timeout_s=self.timeout_s,
            limits=self.limits,
            comparison=self.comparison,
            setup=str(columns.get("setup") or ""),
        )
        if outcome.status == "harness_error":
            return failed(outcome.detail)
        share = outcome.passed / outcome.total
        levels = {"compile_error": -1.0, "runtime_error": -0.6, "timeout": -0.6, "failed": -0.3, "passed": 1.0}
        value = {"all": float(outcome.status == "passed"), "share": share, "coderl": levels[outcome.status]}[self.grade]
        return Score(
            value=value,
            parts={"tests_passed": share},
            reason=f"{outcome.status} {outcome.passed}/{outcome.total} {outcome.detail}"[:300],
            flags=(*flags, outcome.status),
        )

    def _flags(self, trajectory: Trajectory) -> Iterator[str]:
        if trajectory.status.kind is StatusKind.TRUNCATED:
            yield "truncated"
        if TAMPERING.search(trajectory.text):
            yield "test_tampering"

    def validate(self) -> None:
        """Raises ValueError unless an honest program passes and empty and cheating ones do not."""
        if self.kind == "stdio":
            columns: dict[str, Any] = {self.tests: [{"input": "2 3\n", "output": "5\n"}]}
            good = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
        else:
            columns = {self.tests: ["assert add(2, 3) == 5", "assert abs(add(0.1, 0.2) - 0.3) < 1e-9"]}
            good = "```python\ndef add(a, b):\n    return a + b\n```"
        cheat = "```python\nimport os\nos._exit(0)\n```"
        worst = -0.3 if self.grade == "coderl" else 0.0
        expect(self, "", full=[good], none=["", cheat, "```python\ndef add(a, b): return 6\n```"], columns=columns,
               worst=worst)  # fmt: skip
