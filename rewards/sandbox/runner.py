"""Runs inside the isolated process (its text is sent there, behind values.py): the candidate's program.

`run(role, first, receive, send)`. "function": execute the program as a module, then answer requests: take the value of a
name, call it, or do one of `OPERATIONS` with an object that stayed here. "stdio": execute it as a script. Answers are data
for a comparison that happens in another process; nothing here knows an expected value.
"""

from __future__ import annotations

import operator
import sys
import types
from typing import Any

from llmrl.rewards.sandbox.values import decode, encode


def _awaited(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


OPERATIONS: dict[str, Any] = {
    **{
        name: getattr(operator, name)
        for name in ("eq", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv")
    },
    **{name: getattr(operator, name) for name in ("mod", "pow", "matmul", "and_", "or_", "xor", "neg", "getitem")},
    **{name: getattr(operator, name) for name in ("setitem", "delitem")},
    **{f.__name__: f for f in (len, iter, next, bool, str, repr, format, hash, abs, int, float, getattr, setattr)},
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda value: type(value).__enter__(value),
    "exit": lambda value: type(value).__exit__(value, None, None, None),
    "call": lambda value, *args, **kwargs: value(*args, **kwargs),
    "await": _awaited,
}


def _complaint(error: BaseException) -> dict:
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001 - the exception is the candidate's own
        text = ""
    kinds = [str(kind.__name__) for kind in type(error).__mro__[:20]]
    return {"error": kinds[0], "text": text, "kinds": kinds}


def _module(name: str) -> dict[str, Any]:
    """The name space of a fresh module that the program runs as; dataclasses and pickle look it up by name."""
    import builtins

    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    module = types.ModuleType(name)
    _kept.append(sys.modules.get(name))
    sys.modules[name] = module
    return module.__dict__


_kept: list[Any] = []


def _changed(sent: list, args: list, keep: Any) -> dict[str, Any]:
    """Arguments that a call changed in place, by position."""
    now = {i: encode(arg, keep) for i, arg in enumerate(args) if type(arg) in (list, dict, set, bytearray)}
    return {str(i): data for i, data in now.items() if data != sent[i]}


def run_function(first: dict, receive: Any, send: Any) -> None:
    """Load the program, then answer requests until the pipe closes."""
    # What is used later is taken before foreign code runs.
    encode_, decode_, complain, changed, operations, kept = encode, decode, _complaint, _changed, dict(OPERATIONS), []
    scope = _module("solution")
    try:
        code = compile(first["program"], "<program>", "exec")
    except BaseException as error:  # noqa: BLE001 - reported
        send({"compile_error": f"{type(error).__name__}: {error}"[:300]})
        return
    try:
        exec(code, scope)
    except BaseException as error:  # noqa: BLE001 - reported; SystemExit too
        send({"load_error": f"{type(error).__name__}: {error}"[:300]})
        return
    send({"loaded": True})

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    def here(number: int, kind: str = "") -> Any:
        return kept[number] if kind != "callback" else lambda *args, **kwargs: back(number, args, kwargs)

    def back(number: int, args: tuple, kwargs: dict) -> Any:
        """Call a function that a test handed over; the test's process may ask for more while it runs."""
        sent = {
            "args": [encode_(arg, keep) for arg in args],
            "kwargs": {k: encode_(v, keep) for k, v in kwargs.items()},
        }
        send({"callback": number, **sent, "id": turn[-1]})
        while (reply := receive())["do"] != "returned":
            serve(reply)
        turn.append(reply["id"])
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return decode_(reply["value"], here)

    def serve(request: dict) -> None:
        turn.append(request["id"])
        try:
            sent = request.get("args", [])
            args = [decode_(item, here) for item in sent]
            kwargs = {key: decode_(item, here) for key, item in request.get("kwargs", {}).items()}
            if "object" in request:
                target = kept[request["object"]]
            elif request["name"] in scope:
                target = scope[request["name"]]
            else:
                raise NameError(f"name {request['name']!r} is not defined")
            value = target if request["do"] == "value" else operations[request["do"]](target, *args, **kwargs)
            answer = {"value": encode_(value, keep)}
            if request["do"] == "call" and value is None and (moved := changed(sent, args, keep)):
                answer["args"] = moved
        except BaseException as error:  # noqa: BLE001 - reported; SystemExit too
            answer = complain(error)
        send({**answer, "id": turn[-1]})

    turn: list[int] = []
    while True:
        serve(receive())


def run_stdio(first: dict, send: Any) -> None:
    """Run the program as a script on this process's stdin and stdout."""
    try:
        code = compile(first["program"], "<program>", "exec")
    except BaseException as error:  # noqa: BLE001 - reported
        send({"compile_error": f"{type(error).__name__}: {error}"[:300]})
        return
    status: Any = 0
    try:
        exec(code, _module("__main__"))
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:  # noqa: BLE001 - reported
        send({"load_error": f"{type(error).__name__}: {error}"[:300]})
        status = 1
    sys.stdout.flush()
    if status not in (0, None):
        send({"load_error": f"exit status {str(status)[:100]}"})
    else:
        send({"ended": True})


def run(role: str, first: dict, receive: Any, send: Any) -> None:
    """What child.py calls once it is isolated."""
    if role == "function":
        run_function(first, receive, send)
    else:
        run_stdio(first, send)
