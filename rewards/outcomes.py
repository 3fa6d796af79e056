"""What became of a program, in four classes, and the return of each: CodeRL's (Le et al. 2022, 2207.01780, eq. 4-7).

The tests' results are codes, in the order of the tests, as the paper's harness writes them: -2 the program does not
compile, -1 it raised or ran out of time, False a wrong answer, True a right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Outcome(IntEnum):
    """The classes, numbered as CodeRL's critic numbers them."""

    COMPILE_ERROR = 0
    RUNTIME_ERROR = 1
    FAILED_TEST = 2
    PASSED_TEST = 3


_OF_CODE = {-2: Outcome.COMPILE_ERROR, -1: Outcome.RUNTIME_ERROR, 0: Outcome.FAILED_TEST, 1: Outcome.PASSED_TEST}


def outcome_of(results: Sequence[bool | int]) -> Outcome | None:
    """The outcome of a program from its tests' codes: the first that is not a pass decides. None if there was no test.

    Raises ValueError for any other code.

    >>> outcome_of([True, False, -1]), outcome_of([True, True]), outcome_of([])
    (<Outcome.FAILED_TEST: 2>, <Outcome.PASSED_TEST: 3>, None)
    """
    for code in results:
        if not isinstance(code, int) or code not in _OF_CODE:
            raise ValueError(f"{code!r} is no result of a test; there are -2, -1, False and True")
    outcomes = [_OF_CODE[int(code)] for code in results]
    return next((one for one in outcomes if one is not Outcome.PASSED_TEST), outcomes[-1] if outcomes else None)


def outcome_return(
    outcome: Outcome,
    *,
    passed: float | None = None,
    compile_error: float = -1.0,
    runtime_error: float = -0.6,
    failed_test: float = -0.3,
    passed_test: float = 1.0,
) -> float:
    """The return of an outcome. passed: the share of tests passed, in [0, 1]; a program that failed a test then gets

        failed_test + passed * (passed_test - failed_test)

    and the other outcomes what they get without it. Raises ValueError for a share outside [0, 1].

    >>> outcome_return(Outcome.FAILED_TEST), outcome_return(Outcome.FAILED_TEST, passed=0.0)
    (-0.3, -0.3)
    """
    if passed is not None and not 0.0 <= passed <= 1.0:
        raise ValueError(f"passed={passed!r} is not a share of tests; give a number from 0 to 1")
    if outcome == Outcome.FAILED_TEST and passed is not None:
        return failed_test + passed * (passed_test - failed_test)
    return (compile_error, runtime_error, failed_test, passed_test)[Outcome(outcome)]
