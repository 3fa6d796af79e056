"""Runs inside the isolated process (its text is loaded there, behind values.py): the candidate's program.

`run(role, first, receive, send)`. "function": execute the program as a module, then answer requests: take the value of a
name, call it, or do one of `OPERATIONS` with an object that stayed here. "stdio": execute it as a script. Answers are data
for a comparison that happens in another process; nothing here knows an expected value.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from llmrl.rewards.sandbox.standins import OPERATIONS, Kept, equip
from llmrl.rewards.sandbox.values import StandIn, decode, encode


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


def _after_call(value: Any, sent: list, args: list, keep: Any) -> dict[str, Any]:
    """What the caller may learn of its arguments: only if the call returned None, or one of them changed in place."""
    if value is None:
        moved = _changed(sent, args, keep)
        return {"args": moved} if moved else {}
    same = next((i for i, arg in enumerate(args) if arg is value and type(arg) in (list, dict, set, bytearray)), None)
    return {} if same is None else {"same": same}


class _Program:
    """The loaded program, and the objects of its and of the tests that go back and forth."""

    def __init__(self, scope: dict, receive: Any, send: Any) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        # What is used later is taken before foreign code runs.
        self.encode, self.decode, self.complain, self.after, self.operations = (
            encode, decode, _complaint, _after_call, dict(OPERATIONS),
        )  # fmt: skip
        self.kept = Kept()
        self.theirs: dict[int, Any] = {}
        self.turn: list[int] = []

    def keep(self, value: Any) -> int:
        return self.kept.number(value)

    def here(self, number: int, kind: str = "") -> Any:
        """The program's own object, or what stands for a test's function or object."""
        if kind not in ("callback", "own"):
            return self.kept.objects[number]
        if number not in self.theirs:

            def call(*args: Any, **kwargs: Any) -> Any:
                return self.ask({"do": "call", "object": number, "args": args, "kwargs": kwargs})

            self.theirs[number] = call if kind == "callback" else StandIn(number, self.ask, "own")
        return self.theirs[number]

    def ask(self, wish: dict) -> Any:
        """Ask the tests' process about one of its objects; it may ask for more while this waits."""
        sent = {
            "args": [self.encode(arg, self.keep) for arg in wish["args"]],
            "kwargs": {k: self.encode(v, self.keep) for k, v in wish["kwargs"].items()},
        }
        self.send({"callback": wish["object"], "do": wish["do"], **sent, "id": self.turn[-1]})
        while (reply := self.receive())["do"] != "returned":
            self.serve(reply)
        self.turn.append(reply["id"])
        if "error" in reply:
            kind = _RAISED.get(reply.get("kind"), RuntimeError)
            raise kind(reply["error"])
        return self.decode(reply["value"], self.here)

    def serve(self, request: dict) -> None:
        """Answer one request."""
        self.turn.append(request["id"])
        try:
            sent = request.get("args", [])
            args = [self.decode(item, self.here) for item in sent]
            kwargs = {key: self.decode(item, self.here) for key, item in request.get("kwargs", {}).items()}
            if "object" in request:
                target = self.kept.objects[request["object"]]
            elif request["name"] in self.scope:
                target = self.scope[request["name"]]
            else:
                raise NameError(f"name {request['name']!r} is not defined")
            do = request["do"]
            value = target if do == "value" else self.operations[do](target, *args, **kwargs)
            answer = {"value": self.encode(value, self.keep)}
            if do == "call":
                answer.update(self.after(value, sent, args, self.keep))
        except BaseException as error:  # noqa: BLE001 - reported; SystemExit too
            answer = self.complain(error)
        self.send({**answer, "id": self.turn[-1]})


_RAISED: dict[Any, Any] = {
    kind.__name__: kind
    for kind in (StopIteration, AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)
}


def run_function(first: dict, receive: Any, send: Any) -> None:
    """Load the program, then answer requests until the pipe closes."""
    equip()
    program = _Program(_module("solution"), receive, send)
    try:
        code = compile(first["program"], "<program>", "exec")
    except BaseException as error:  # noqa: BLE001 - reported
        send({"compile_error": f"{type(error).__name__}: {error}"[:300]})
        return
    try:
        exec(code, program.scope)
    except BaseException as error:  # noqa: BLE001 - reported; SystemExit too
        send({"load_error": f"{type(error).__name__}: {error}"[:300]})
        return
    send({"loaded": True})
    while True:
        program.serve(receive())


def _stdin_by_name() -> None:
    """`open("/dev/stdin")` is this process's stdin, also where there is no /proc for the system's own link."""
    import builtins
    import io

    given = io.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if file == "/dev/stdin" or (hasattr(file, "__fspath__") and file.__fspath__() == "/dev/stdin"):
            file, kwargs["closefd"] = 0, False
        return given(file, *args, **kwargs)

    builtins.open = io.open = opened


def run_stdio(first: dict, send: Any) -> None:
    """Run the program as a script on this process's stdin and stdout."""
    try:
        code = compile(first["program"], "<program>", "exec")
    except BaseException as error:  # noqa: BLE001 - reported
        send({"compile_error": f"{type(error).__name__}: {error}"[:300]})
        return
    status: Any = 0
    _stdin_by_name()
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
