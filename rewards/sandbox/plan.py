"""What to do for one function test: a call whose result is compared outside, or test code that needs a process of its own.

`assert f(1) == 2` and `[arguments, expected]` become a `Call`, so that the expected value never enters the
candidate's process. Any other test code becomes a `Script` with the names that it takes from the program. Which names
those are is read from the tests alone: if the program had a say, it could replace what the tests check it with.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.rewards.sandbox.inplace import changed_openly, compared_with_itself
from llmrl.rewards.sandbox.starter import SandboxError

# What tests use without importing it, because the reference solution does: name -> module, or module and member.
_LIBRARY = {
    **{name: ("collections", name) for name in ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple")},
    **{name: ("math", name) for name in ("inf", "isclose", "nan")},
    **{"Decimal": ("decimal", "Decimal"), "Fraction": ("fractions", "Fraction"), "deepcopy": ("copy", "deepcopy")},
    **{"np": ("numpy", ""), "numpy": ("numpy", ""), "pd": ("pandas", ""), "pandas": ("pandas", "")},
    **{"scipy": ("scipy", ""), "sympy": ("sympy", ""), "pytest": ("pytest", "")},
}


@dataclass(frozen=True, slots=True)
class Call:
    """A test that is one call and its expected value."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: Any


@dataclass(frozen=True, slots=True)
class Script:
    """Test code of any other form.

    stubs: names of the program. library: name -> (module, member or ""). open: variables that may show what a call
    changed in place and returned.
    """

    source: str
    stubs: tuple[str, ...]
    library: Mapping[str, tuple[str, str]]
    open: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Free:
    """The names that test code uses and does not define: the program's, the library's, and what of those is called."""

    program: frozenset[str]
    library: frozenset[str]
    called: frozenset[str]


def plan_tests(tests: Sequence[Any], entry_point: str | None, setup: str) -> list[Call | Script]:
    """One plan a test. Raises SandboxError for a test that cannot be understood.

    A name that Python or its library has is the library's, unless it is the entry point. If no entry point is given, and
    the tests take no other name from the program (`assert sum(1, 2) == 3`), the one such name they call is meant.
    """
    sources = [f"{setup}\n{test}" if setup else test for test in tests if isinstance(test, str)]
    names = [_free_names(source, entry_point) for source in sources]
    if sources and not entry_point and not any(free.program for free in names):
        called = sorted({name for free in names for name in free.called})
        if len(called) > 1:
            raise SandboxError(f"which of {', '.join(called)} is the program's? Say so with entry_point")
        entry_point = called[0] if called else None
    others = {name for free in names for name in free.program - {entry_point} if name[:1].islower()}
    if entry_point and others and any(entry_point in free.program for free in names):
        raise SandboxError(
            f"the tests call {min(others)}, which neither they nor setup define; entry_point is {entry_point}"
        )
    return [_plan(test, entry_point, setup) for test in tests]


def program_names(tests: Sequence[Any], entry_point: str | None, setup: str = "") -> frozenset[str]:
    """The names that the tests take from the program; empty for stdio tests and for tests that cannot be understood."""
    try:
        plans = plan_tests(tests, entry_point, setup)
    except SandboxError:
        return frozenset()
    return frozenset(name for plan in plans for name in ([plan.name] if isinstance(plan, Call) else plan.stubs))


def _plan(test: Any, entry_point: str | None, setup: str) -> Call | Script:
    if isinstance(test, str):
        if not setup and (call := _split(test, entry_point)):
            return call
        source = f"{setup}\n{test}" if setup else test
        free = _free_names(source, entry_point)
        library = {name: _LIBRARY.get(name, (name, "")) for name in free.library if not hasattr(builtins, name)}
        tree = ast.parse(source)
        if alone := compared_with_itself(tree, free.program):
            raise SandboxError(f"the test compares {min(alone)}, which the program may change, with nothing but itself")
        shown = changed_openly(tree, free.program)
        return Script(source, tuple(sorted(free.program)), library, tuple(sorted(shown)))
    if not isinstance(test, (list, tuple)) or len(test) != 2:
        raise SandboxError(f"a function test must be a string or [arguments, expected], got {str(test)[:80]!r}")
    if not entry_point:
        raise SandboxError("[arguments, expected] tests need entry_point")
    args, expected = test
    args = tuple(args) if isinstance(args, (list, tuple)) else (args,)
    return Call(entry_point, args, {}, expected)


def _free_names(source: str, entry_point: str | None) -> _Free:
    try:
        tree, table = ast.parse(source), symtable.symtable(source, "<test>", "exec")
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SandboxError(f"a test cannot be parsed: {error}") from error
    tables = list(_tables(table))
    made = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    made |= {s.get_name() for t in tables for s in t.get_symbols() if s.is_declared_global() and s.is_assigned()}
    used = {
        s.get_name() for t in tables for s in t.get_symbols() if s.is_referenced() and (t is table or s.is_global())
    }
    free = used - made
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    library = {name for name in free if name != entry_point and _in_library(name, name in called)}
    return _Free(frozenset(free - library), frozenset(library), frozenset(library & called))


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _in_library(name: str, called: bool) -> bool:
    """Whether Python or its library has the name. A module cannot be called: a name that is called is none."""
    return hasattr(builtins, name) or name in _LIBRARY or (name in sys.stdlib_module_names and not called)


def _split(source: str, entry_point: str | None) -> Call | None:
    """`assert f(literals) == literal`, either way round, as a call; None for any other test."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SandboxError(f"a test cannot be parsed: {error}") from error
    node = body[0] if len(body) == 1 else None
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare) or len(node.test.ops) != 1:
        return None
    if not isinstance(node.test.ops[0], ast.Eq):
        return None
    for call, value in ((node.test.left, node.test.comparators[0]), (node.test.comparators[0], node.test.left)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if call.func.id != entry_point and _in_library(call.func.id, called=True):
            continue
        try:
            args = tuple(ast.literal_eval(arg) for arg in call.args)
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
            if len(kwargs) == len(call.keywords):
                return Call(call.func.id, args, kwargs, ast.literal_eval(value))
        except (ValueError, TypeError, SyntaxError, RecursionError):
            continue
    return None
