"""What to do for one function test: a call whose result is compared outside, or test code that needs a process of its own.

`assert f(1) == 2` and `[arguments, expected]` become a `Call`, so that the expected value never enters the
candidate's process. Any other test code becomes a `Script` with the names that it takes from the program.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmrl.rewards.sandbox import SandboxError


@dataclass(frozen=True, slots=True)
class Call:
    """A test that is one call and its expected value."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: Any


@dataclass(frozen=True, slots=True)
class Script:
    """Test code of any other form."""

    source: str
    stubs: tuple[str, ...]
    modules: tuple[str, ...]


def plan_test(test: Any, entry_point: str | None, setup: str, program: str) -> Call | Script:
    if isinstance(test, str):
        return _of_source(test, entry_point, setup, program)
    if not isinstance(test, (list, tuple)) or len(test) != 2:
        raise SandboxError(f"a function test must be a string or [arguments, expected], got {str(test)[:80]!r}")
    if not entry_point:
        raise SandboxError("[arguments, expected] tests need entry_point")
    args, expected = test
    args = tuple(args) if isinstance(args, (list, tuple)) else (args,)
    return Call(entry_point, args, {}, expected)


def _of_source(source: str, entry_point: str | None, setup: str, program: str) -> Call | Script:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SandboxError(f"a test cannot be parsed: {error}") from error
    if not setup and len(tree.body) == 1 and (call := _split(tree.body[0], entry_point)):
        return call
    tree = ast.parse(f"{setup}\n{source}") if setup else tree
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    made = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    made |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    made |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    free = loaded - made
    entry = entry_point or next((n for n in sorted(free) if n in _defined(program) and hasattr(builtins, n)), None)
    stubs = {name for name in free if not hasattr(builtins, name) or name == entry}
    modules = {name for name in stubs if name in sys.stdlib_module_names and name not in _defined(program)}
    text = f"{setup}\n{source}" if setup else source
    return Script(text, tuple(sorted(stubs - modules)), tuple(sorted(modules)))


def _split(node: ast.stmt, entry_point: str | None) -> Call | None:
    """`assert f(literals) == literal`, either way round, as a call; None for any other statement."""
    if not isinstance(node, ast.Assert) or not isinstance(node.test, ast.Compare) or len(node.test.ops) != 1:
        return None
    if not isinstance(node.test.ops[0], ast.Eq):
        return None
    for call, value in ((node.test.left, node.test.comparators[0]), (node.test.comparators[0], node.test.left)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        if hasattr(builtins, call.func.id) and call.func.id != entry_point:
            continue
        try:
            args = tuple(ast.literal_eval(arg) for arg in call.args)
            kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
            if len(kwargs) == len(call.keywords):
                return Call(call.func.id, args, kwargs, ast.literal_eval(value))
        except (ValueError, TypeError, SyntaxError, RecursionError):
            continue
    return None


def _defined(program: str) -> set[str]:
    """Top-level functions and classes of a program; empty if it cannot be parsed."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
