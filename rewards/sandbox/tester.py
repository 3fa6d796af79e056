"""Runs trusted test code in a sandboxed process without any candidate code (its text is sent there, behind
values.py).

Every name the tests take from the program is an `Opaque`: calls, attributes, items, iteration, length, text and truth are
asked of the candidate's process. Comparisons and arithmetic go there only if both sides are the candidate's objects: with a
plain value they would hand over what is expected, and believe the answer.
"""

from __future__ import annotations

import ast
import builtins
import importlib
from typing import Any

from llmrl.rewards.sandbox.values import Opaque, decode, encode

_BINARY = ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
_UNARY = ("len", "iter", "next", "bool", "str", "repr", "hash", "neg", "abs", "int", "float", "enter")


def _ask_of(value: Any, what: str, *args: Any, **kwargs: Any) -> Any:
    number, ask = (object.__getattribute__(value, name) for name in ("_number", "_ask"))
    return ask({"do": what, "object": number, "args": args, "kwargs": kwargs})


def _unary(what: str) -> Any:
    return lambda self: _ask_of(self, what)


def _binary(what: str) -> Any:
    return lambda self, other: _ask_of(self, what, other) if isinstance(other, Opaque) else NotImplemented


def _attribute(self: Any, name: str) -> Any:
    if name.startswith("__") and name != "__name__":
        raise AttributeError(name)
    return _ask_of(self, "getattr", name)


def _equip() -> None:
    """Give Opaque its operators."""
    for what in _UNARY:
        setattr(Opaque, f"__{what}__", _unary(what))
    for what in _BINARY:
        setattr(Opaque, f"__{what}__", _binary(what))
    for what in ("and", "or", "xor"):
        setattr(Opaque, f"__{what}__", _binary("xor" if what == "xor" else f"{what}_"))
    members: dict[str, Any] = {
        "__getattr__": _attribute,
        "__setattr__": lambda self, name, value: _ask_of(self, "setattr", name, value),
        "__call__": lambda self, *args, **kwargs: _ask_of(self, "call", *args, **kwargs),
        "__getitem__": lambda self, key: _ask_of(self, "getitem", key),
        "__setitem__": lambda self, key, value: _ask_of(self, "setitem", key, value),
        "__delitem__": lambda self, key: _ask_of(self, "delitem", key),
        "__format__": lambda self, spec: _ask_of(self, "format", spec),
        "__contains__": lambda self, item: any(item == one for one in self),
        "__exit__": lambda self, *error: bool(_ask_of(self, "exit")),
        "__instancecheck__": lambda self, item: isinstance(item, Opaque) and _ask_of(self, "isinstance", item),
    }
    for name, member in members.items():
        setattr(Opaque, name, member)


def _caught(source: str) -> set[str]:
    """Names that the test catches as exceptions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            found |= {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
    return found


def _write_back(original: Any, now: Any) -> None:
    """Put into a mutable argument what the call left in the candidate's copy of it."""
    if type(original) is not type(now):
        return
    if isinstance(original, (list, bytearray)):
        original[:] = now
    elif isinstance(original, (dict, set)):
        original.clear()
        original.update(now)


def run(role: str, first: dict, receive: Any, send: Any) -> None:
    """What child.py calls once it is isolated: run tests one by one."""
    _equip()
    exceptions: dict[str, type] = {}
    callbacks: list[Any] = []

    def keep(value: Any) -> dict:
        if not callable(value):
            raise TypeError(f"a test cannot send a {type(value).__name__} to the program")
        callbacks.append(value)
        return {"callback": len(callbacks) - 1}

    def opaque(number: int, kind: str = "") -> Any:
        if kind == "callback":
            return callbacks[number]
        value = Opaque(number, ask)
        if kind != "coroutine":
            return value

        async def waiting() -> Any:
            return _ask_of(value, "await")

        return waiting()

    def ask(message: dict) -> Any:
        given = message.get("args", ())
        message["args"] = [encode(item, keep) for item in given]
        message["kwargs"] = {key: encode(item, keep) for key, item in message.get("kwargs", {}).items()}
        send(message)
        while "callback" in (answer := receive()):
            send({"do": "returned", **called(answer)})
        if "error" in answer:
            raise _error(answer, exceptions)
        for place, data in answer.get("args", {}).items():
            _write_back(given[int(place)], decode(data, opaque))
        return decode(answer["value"], opaque)

    def called(wish: dict) -> dict:
        """The program calls a function that a test handed over."""
        try:
            args = [decode(item, opaque) for item in wish["args"]]
            kwargs = {key: decode(item, opaque) for key, item in wish["kwargs"].items()}
            return {"value": encode(callbacks[wish["callback"]](*args, **kwargs), keep)}
        except Exception as error:  # noqa: BLE001 - goes back to the program that called
            return {"error": f"{type(error).__name__}: {error}"[:300]}

    def taken(name: str) -> Any:
        """The program's value of a name; if it has none, something that says so when it is used."""
        try:
            return ask({"do": "value", "name": name})
        except NameError:
            return lambda *args, **kwargs: ask({"do": "call", "name": name, "args": args, "kwargs": kwargs})

    while True:
        test = receive()
        scope: dict[str, Any] = {"__name__": "tests"}
        exceptions.clear()
        try:
            caught = _caught(test["source"])
            for name, (module, member) in test["library"].items():
                scope[name] = importlib.import_module(module)
                scope[name] = getattr(scope[name], member) if member else scope[name]
            for name in test["stubs"]:
                if name in caught:
                    scope[name] = exceptions[name] = type(name, (Exception,), {})
                else:
                    scope[name] = taken(name)
            exec(compile(test["source"], "<test>", "exec"), scope)
            send({"do": "verdict", "verdict": "passed", "text": ""})
        except AssertionError as error:
            send({"do": "verdict", "verdict": "failed", "text": f"AssertionError {error}"[:300]})
        except BaseException as error:  # noqa: BLE001 - reported
            send({"do": "verdict", "verdict": "runtime_error", "text": f"{type(error).__name__}: {error}"[:300]})


def _error(answer: dict, exceptions: dict[str, type]) -> Exception:
    """The candidate's exception, as the nearest of its kinds that the test or Python knows."""
    for name in answer.get("kinds", [answer["error"]]):
        kind = exceptions.get(name) or getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(answer["text"])
            except TypeError:
                continue
    return RuntimeError(answer["error"])
