"""Runs inside the isolated process (its text is sent there): evaluates the candidate's calls, or runs the tests.

`run(role, first, receive, send)` with three roles. "function": execute the program as a module, then answer calls.
"stdio": execute it as a script. "tester": execute trusted test code in a process without any candidate code, where
every name the tests take from the program is a stub that sends the call out. Values travel as tagged JSON of exact
builtin types, taken with the base classes' own methods, so that an overridden `__eq__` or `__repr__` says nothing.
"""

from __future__ import annotations

import sys
from typing import Any

DEEPEST = 200
_BUILTIN_TYPES: dict[str, type] = {
    t.__name__: t for t in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex)
}


class Opaque:
    """In the tester: a value that stays in the candidate's process; attributes and calls go there."""

    def __init__(self, number: int, ask: Any) -> None:
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_ask", ask)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask({"do": "set", "object": self._number, "name": name, "args": [value]})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask({"do": "attribute", "object": self._number, "name": name})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask({"do": "call", "object": self._number, "args": args, "kwargs": kwargs})


def encode(value: Any, keep: Any = None, depth: int = 0) -> Any:
    """Tagged JSON of a value made of builtin types; anything else goes through `keep` (or raises TypeError)."""
    kind = type(value)
    if depth > DEEPEST:
        raise ValueError("a value nested too deeply")
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, Opaque):
        return {"opaque": value._number}
    if kind is int or (issubclass(kind, int) and kind is not bool):
        return {"int": int.__format__(value, "x")}
    if issubclass(kind, float):
        return {"float": float.hex(value)}
    if issubclass(kind, str):
        return str.__str__(value) + ""
    if issubclass(kind, (bytes, bytearray)):
        return {"bytes" if issubclass(kind, bytes) else "bytearray": bytes(memoryview(value)).hex()}
    if kind is complex:
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    for base, tag in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if issubclass(kind, base):
            return {tag: [encode(item, keep, depth + 1) for item in base.__iter__(value)]}
    if issubclass(kind, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in pairs]}
    if kind is type and (named := [name for name, known in _BUILTIN_TYPES.items() if known is value]):
        return {"type": named[0]}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    if keep is None:
        raise TypeError(f"a {kind.__name__}")
    return {"opaque": keep(value), "type": str(kind.__name__)[:60]}


def decode(data: Any, opaque: Any = None) -> Any:
    """The value of `encode`'s JSON. Raises ValueError for anything else."""
    if data is None or isinstance(data, (bool, str)):
        return data
    if not isinstance(data, dict) or not data:
        raise ValueError(f"not a value: {str(data)[:60]}")
    tag, content = next(iter(data.items()))
    if tag == "int":
        return int(content, 16)
    if tag == "float":
        return float.fromhex(content)
    if tag in ("bytes", "bytearray"):
        return bytes.fromhex(content) if tag == "bytes" else bytearray.fromhex(content)
    if tag == "complex":
        return complex(*(float.fromhex(part) for part in content))
    if tag in ("list", "tuple", "set", "frozenset"):
        kind = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag]
        return kind(decode(item, opaque) for item in content)
    if tag == "dict":
        return {decode(k, opaque): decode(v, opaque) for k, v in content}
    if tag == "range":
        return range(*content)
    if tag == "type" and content in _BUILTIN_TYPES:
        return _BUILTIN_TYPES[content]
    if tag == "opaque" and opaque is not None:
        return opaque(content)
    raise ValueError(f"not a value: {tag}")


def _complaint(error: BaseException) -> dict:
    try:
        text = str(error)[:300]
    except BaseException:  # noqa: BLE001 - the exception is the candidate's own
        text = ""
    return {"error": type(error).__name__, "text": text}


def run_function(first: dict, receive: Any, send: Any) -> None:
    """Load the program, then answer calls until the pipe closes."""
    # What is used later is taken before foreign code runs.
    encode_, decode_, complain, kept = encode, decode, _complaint, []
    scope: dict[str, Any] = {"__name__": "solution", "__builtins__": __builtins__}
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

    while True:
        request = receive()
        try:
            args = [decode_(item, kept.__getitem__) for item in request.get("args", [])]
            kwargs = {key: decode_(item, kept.__getitem__) for key, item in request.get("kwargs", {}).items()}
            if "object" in request:
                target = kept[request["object"]]
            elif request["name"] in scope:
                target = scope[request["name"]]
            else:
                raise NameError(f"name {request['name']!r} is not defined")
            if request["do"] == "attribute":
                value = getattr(target, request["name"])
            elif request["do"] == "set":
                value = None
                setattr(target, request["name"], args[0])
            else:
                value = target(*args, **kwargs)
            answer = {"value": encode_(value, keep)}
        except BaseException as error:  # noqa: BLE001 - reported; SystemExit too
            answer = complain(error)
        send({**answer, "id": request["id"]})


def run_stdio(first: dict, send: Any) -> None:
    """Run the program as a script on this process's stdin and stdout."""
    try:
        code = compile(first["program"], "<program>", "exec")
    except BaseException as error:  # noqa: BLE001 - reported
        send({"compile_error": f"{type(error).__name__}: {error}"[:300]})
        return
    status: Any = 0
    try:
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
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


def run_tester(receive: Any, send: Any) -> None:
    """Run trusted tests one by one; names of the program are stubs."""
    import builtins
    import importlib

    def ask(message: dict) -> Any:
        message["args"] = [encode(item) for item in message.get("args", ())]
        message["kwargs"] = {key: encode(item) for key, item in message.get("kwargs", {}).items()}
        send(message)
        answer = receive()
        if "error" in answer:
            kind = getattr(builtins, answer["error"], None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(answer["text"])
            raise RuntimeError(answer["error"])
        return decode(answer["value"], lambda number: Opaque(number, ask))

    def stub(name: str) -> Any:
        return lambda *args, **kwargs: ask({"do": "call", "name": name, "args": args, "kwargs": kwargs})

    while True:
        test = receive()
        scope: dict[str, Any] = {"__name__": "tests"}
        for name in test["modules"]:
            scope[name] = importlib.import_module(name)
        for name in test["stubs"]:
            scope[name] = stub(name)
        try:
            exec(compile(test["source"], "<test>", "exec"), scope)
            send({"do": "verdict", "verdict": "passed", "text": ""})
        except AssertionError as error:
            send({"do": "verdict", "verdict": "failed", "text": f"AssertionError {error}"[:300]})
        except BaseException as error:  # noqa: BLE001 - reported
            send({"do": "verdict", "verdict": "runtime_error", "text": f"{type(error).__name__}: {error}"[:300]})


def run(role: str, first: dict, receive: Any, send: Any) -> None:
    """What sandbox_child.py calls once it is isolated."""
    if role == "function":
        run_function(first, receive, send)
    elif role == "stdio":
        run_stdio(first, send)
    else:
        run_tester(receive, send)
