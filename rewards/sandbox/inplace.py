"""Which variables of a test may show what a call changed in place and returned."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set


def _names(node: ast.AST, *, stored: bool = False) -> set[str]:
    return {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store if stored else ast.Load)
    }


def _steps(tree: ast.Module) -> Iterator[tuple[ast.AST, set[str]]]:
    """What a test evaluates at one go, and the names it assigns: simple statements, and the heads of compound ones."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            yield node.iter, _names(node.target, stored=True)
        elif isinstance(node, (ast.If, ast.While)):
            yield node.test, set()
        elif isinstance(node, ast.withitem):
            yield node.context_expr, _names(node.optional_vars, stored=True) if node.optional_vars else set()
        elif isinstance(node, ast.stmt) and not hasattr(node, "body"):
            yield node, _names(node, stored=True)


def changed_openly(tree: ast.Module, stubs: Set[str]) -> set[str]:
    """Variables of the test that may show what a call changed in place and returned.

    Not those that stand beside a result of the program in one step: `assert f(x) == sorted(x)` means the x that was
    handed over, and a program that empties it would pass.
    """
    steps = list(_steps(tree))

    def from_(roots: Set[str]) -> set[str]:
        found = set(roots)
        while True:
            more = {name for node, made in steps if _names(node) & found for name in made} - found
            if not more:
                return found
            found |= more

    arguments = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    theirs = from_(stubs | arguments)
    allowed = set()
    for name in {name for node, _ in steps for name in _names(node)} - theirs:
        kin = {other for other in from_({name}) if other not in theirs} | {name}
        beside = [
            node for node, _ in steps if _names(node) & kin and _names(node) & theirs and not _shows_nothing(node, name)
        ]
        if not beside:
            allowed.add(name)
    return allowed


def compared_with_itself(tree: ast.Module, stubs: Set[str]) -> set[str]:
    """Variables that the program is given and the test then compares with nothing but themselves: x == sorted(x)."""
    given: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in stubs:
            given |= {arg.id for arg in node.args if isinstance(arg, ast.Name)}
    items: dict[str, set[str]] = {}  # names of a loop -> what it runs over
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)):
            for name in _names(node.target, stored=True):
                items.setdefault(name, set()).update(_names(node.iter))

    def meant(node: ast.AST) -> set[str]:
        return {other for name in _names(node) for other in items.get(name, {name})} & (given | stubs)

    alone: set[str] = set()
    beside: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [meant(side) for side in (node.left, *node.comparators)]
            both, either = set.intersection(*sides), set.union(*sides)
            (beside if either != both else alone).update(either)
    return alone & given - beside


def _shows_nothing(node: ast.AST, name: str) -> bool:
    """`f(name)`, `y = f(name)`, or `assert y is name`, and nothing else."""
    if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
        return all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.test.ops)
    value = node.value if isinstance(node, (ast.Expr, ast.Assign)) else None
    return isinstance(value, ast.Call) and any(isinstance(arg, ast.Name) and arg.id == name for arg in value.args)
