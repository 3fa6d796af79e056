"""Stand-ins: objects of another process that look as if they were here (its text is loaded in both sandboxed processes).

In the tests' process the program's objects are stand-ins, in the program's process the tests' objects are. Each operation
on one is a question to the process where the object lives. Comparisons and arithmetic go there only if both sides live
there: with a plain value they would hand over what is expected, and believe the answer.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

from llmrl.rewards.sandbox.values import StandIn

_BINARY = ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_UNARY = ("len", "iter", "next", "bool", "str", "repr", "hash", "neg", "abs", "int", "float", "enter")


def _awaited(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


# What one process may ask another to do with an object of its own.
OPERATIONS: dict[str, Any] = {
    **{
        name: getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
    },
    **{
        name: getattr(operator, name)
        for name in ("matmul", "and_", "or_", "xor", "neg", "getitem", "setitem", "delitem")
    },
    **{f.__name__: f for f in (len, iter, next, bool, str, repr, format, hash, abs, int, float, getattr, setattr)},
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "call": lambda value, *args, **kwargs: value(*args, **kwargs),
    "await": _awaited,
}


def ask_of(value: Any, what: str, *args: Any, **kwargs: Any) -> Any:
    """Ask the process where the stand-in's object lives."""
    number, ask = (object.__getattribute__(value, name) for name in ("_number", "_ask"))
    return ask({"do": what, "object": number, "args": args, "kwargs": kwargs})


def _unary(what: str) -> Any:
    return lambda self: ask_of(self, what)


def _binary(what: str) -> Any:
    return lambda self, other: ask_of(self, what, other) if isinstance(other, StandIn) else NotImplemented


def _attribute(self: Any, name: str) -> Any:
    if name.startswith("__") and name != "__name__":
        raise AttributeError(name)
    return ask_of(self, "getattr", name)


def _not_sent(self: Any, protocol: int) -> Any:
    raise TypeError("a StandIn cannot be pickled")


def equip() -> None:
    """Give StandIn its operators."""
    for what in _UNARY:
        setattr(StandIn, f"__{what}__", _unary(what))
    for what in _BINARY:
        setattr(StandIn, f"__{what}__", _binary(what))
    for what in ("and", "or", "xor"):
        setattr(StandIn, f"__{what}__", _binary("xor" if what == "xor" else f"{what}_"))
    members: dict[str, Any] = {
        "__getattr__": _attribute,
        "__setattr__": lambda self, name, value: ask_of(self, "setattr", name, value),
        "__call__": lambda self, *args, **kwargs: ask_of(self, "call", *args, **kwargs),
        "__getitem__": lambda self, key: ask_of(self, "getitem", key),
        "__setitem__": lambda self, key, value: ask_of(self, "setitem", key, value),
        "__delitem__": lambda self, key: ask_of(self, "delitem", key),
        "__format__": lambda self, spec: ask_of(self, "format", spec),
        "__contains__": lambda self, item: any(item == one for one in self),
        "__copy__": lambda self: ask_of(self, "copy"),
        "__deepcopy__": lambda self, memo: ask_of(self, "deepcopy"),
        "__reduce_ex__": _not_sent,
        "__exit__": lambda self, *error: bool(ask_of(self, "exit")),
        "__instancecheck__": lambda self, item: isinstance(item, StandIn) and ask_of(self, "isinstance", item),
    }
    for name, member in members.items():
        setattr(StandIn, name, member)


class Kept:
    """The objects of this process that the other one knows by number; an object has one number."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}  # id -> number; `objects` keeps each alive, so that ids stay theirs

    def number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]
