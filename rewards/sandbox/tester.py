"""Runs trusted test code in a sandboxed process without any candidate code (its text is loaded there, behind values.py,
standins.py and witness.py).

What the tests take from the program are stand-ins (standins.py), and what it says of them must fit together (witness.py).
Objects of the tests that the program gets are stand-ins there; it may ask for what they offer publicly.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import json
import sys
import types
from typing import Any

from llmrl.rewards.sandbox.standins import OPERATIONS, Kept, ask_of, equip
from llmrl.rewards.sandbox.values import StandIn, decode, encode
from llmrl.rewards.sandbox.witness import Witness

# Modules whose objects a test may hand over and whose public attributes show nothing of the test.
_PLAIN_MODULES = {"_io", "io", "array", "re", "datetime", "random", "types", "collections", "uuid", "tests"}


class _Unfit(Exception):
    """The test needs something that cannot cross to the program: the harness's failure."""


def _caught(tree: ast.Module) -> set[str]:
    """Names that the test catches as exceptions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            found |= {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
    return found


def _nothing_is_not_everything(numpy: Any) -> None:
    """Make isclose, and so allclose, False for an array that is empty beside one that is not; numpy says True of no items."""
    numeric: Any = sys.modules.get("numpy._core.numeric") or sys.modules["numpy.core.numeric"]
    given = numeric.isclose

    def isclose(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
        return given(a, b, *args, **kwargs) if (numpy.size(a) == 0) is (numpy.size(b) == 0) else given(0, 1)

    if given.__module__ == "numpy":  # not this one already
        numeric.isclose = numpy.isclose = isclose


def _write_back(original: Any, now: Any) -> None:
    """Put into a mutable argument what the call left in the candidate's copy of it."""
    if type(original) is not type(now):
        return
    if isinstance(original, (list, bytearray)):
        original[:] = now
    elif isinstance(original, (dict, set)):
        original.clear()
        original.update(now)


class _Tests:
    """One test at a time: its scope, and the program's process behind `receive` and `send`."""

    def __init__(self, receive: Any, send: Any) -> None:
        self.receive, self.send = receive, send
        self.witness = Witness(self.answer, self.opaque)
        self.exceptions: dict[str, type] = {}
        self.handed = Kept()
        self.current: set[int] = set()
        self.stand_ins: dict[int, StandIn] = {}
        self.scope: dict[str, Any] = {}
        self.open: set[str] = set()
        self.caught: set[str] = set()
        self.lent, self.unfit = False, ""

    # -- values ------------------------------------------------------------------------------------------------------
    def keep(self, value: Any) -> dict:
        """A function or object of the test goes to the program as a number."""
        simple = callable(value) and not isinstance(value, type) and type(value).__module__ != "tests"
        if not simple and (isinstance(value, type(ast)) or type(value).__name__ in ("frame", "code", "traceback")):
            raise _Unfit(f"a test cannot send a {type(value).__name__} to the program")
        number = self.handed.number(value)
        self.current.add(number)
        if simple or isinstance(value, type):
            return {"callback": number}
        self.lent = True
        return {"own": number}

    def own(self, number: int) -> Any:
        """What this test handed over under a number. Raises LookupError for any other number."""
        if number not in self.current:
            raise LookupError(f"this test handed over no object {number}")
        return self.handed.objects[number]

    def opaque(self, number: int, kind: str = "") -> Any:
        if kind in ("callback", "own"):
            return self.own(number)
        if number not in self.stand_ins:
            self.stand_ins[number] = StandIn(number, self.witness.ask, "opaque")
        value = self.stand_ins[number]
        if kind != "coroutine":
            return value

        async def waiting() -> Any:
            return ask_of(value, "await")

        return waiting()

    # -- questions to the program ------------------------------------------------------------------------------------
    def answer(self, message: dict) -> Any:
        given, do = message.get("args", ()), message["do"]
        sent = {**message, "args": [encode(item, self.keep) for item in given]}
        sent["kwargs"] = {key: encode(item, self.keep) for key, item in message.get("kwargs", {}).items()}
        answer = self.witness.remembered(do, json.dumps(sent, sort_keys=True), lambda: self.exchange(sent))
        if "error" in answer:
            raise self.error(answer, ends=do == "next" or "StopIteration" in self.caught)
        if "same" in answer and (original := self.shown(given, answer["same"])) is not None:
            _write_back(original, decode(answer["value"], self.opaque))
            return original
        for place, data in answer.get("args", {}).items() if answer["value"] is None else ():
            _write_back(given[int(place)], decode(data, self.opaque))
        return decode(answer["value"], self.opaque)

    def exchange(self, sent: dict) -> dict:
        self.send(sent)
        while "callback" in (answer := self.receive()):
            self.send({"do": "returned", **self.asked(answer)})
        return answer

    def shown(self, given: tuple, place: int) -> Any:
        """The argument that was changed and returned, if the test may see it so; else None."""
        original = given[place]
        names = {name for name, value in self.scope.items() if value is original}
        return original if names and names <= self.open else None

    def error(self, answer: dict, *, ends: bool) -> Exception:
        """The program's exception, as the nearest of its kinds that the test or Python knows.

        A StopIteration from a call would end a `map` of the test's in silence; only an iterator may raise it (`ends`).
        """
        if "StandIn" in answer.get("text", "") and self.lent:
            self.unfit = self.unfit or answer["text"]
        for name in answer.get("kinds", [answer["error"]]):
            kind = self.exceptions.get(name) or getattr(builtins, name, None)
            if kind in (StopIteration, StopAsyncIteration) and not ends:
                continue
            if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
                try:
                    raised = kind(answer["text"])
                except TypeError:
                    continue
                raised.of_the_program = True  # type: ignore[attr-defined]
                return raised
        return RuntimeError(answer["error"])

    # -- questions of the program ------------------------------------------------------------------------------------
    def asked(self, wish: dict) -> dict:
        """The program calls a function that a test handed over, or asks about an object of the test's."""
        try:
            target = self.own(wish["callback"])
            args = [decode(item, self.opaque) for item in wish["args"]]
            kwargs = {key: decode(item, self.opaque) for key, item in wish["kwargs"].items()}
            return {"value": encode(self.done(target, wish["do"], args, kwargs), self.keep)}
        except _Unfit as error:
            self.unfit = self.unfit or str(error)
            return {"error": str(error), "kind": "TypeError"}
        except Exception as error:  # noqa: BLE001 - goes back to the program that asked
            return {"error": str(error)[:300], "kind": type(error).__name__}

    def done(self, target: Any, do: str, args: list, kwargs: dict) -> Any:
        """An operation on an object of the test's, if it shows nothing but what the object offers."""
        plain = type(target).__module__ in _PLAIN_MODULES
        if do == "getattr":
            if not plain or args[0].startswith("_"):
                raise AttributeError(f"{args[0]!r} of a test's object cannot be seen by the program")
        elif do == "setattr":
            known = [vars(kind)[args[0]] for kind in type(target).__mro__ if args[0] in vars(kind)]
            if not plain or args[0].startswith("_") or (known and not hasattr(known[0], "__set__")):
                raise AttributeError(f"{args[0]!r} of a test's object cannot be changed by the program")
        elif do not in ("call", "iter", "next", "len", "getitem", "bool", "hash") and not plain:
            raise _Unfit(f"the program did {do} with a {type(target).__name__} of the test's")
        return OPERATIONS[do](target, *args, **kwargs)

    # -- one test ----------------------------------------------------------------------------------------------------
    def taken(self, name: str) -> Any:
        """The program's value of a name; if it has none, something that says so when it is used."""
        try:
            return self.answer({"do": "value", "name": name})
        except NameError:
            return lambda *args, **kwargs: self.answer({"do": "call", "name": name, "args": args, "kwargs": kwargs})

    def run(self, test: dict) -> tuple[str, str]:
        """(verdict, why)."""
        tree = ast.parse(test["source"])
        caught, stubs = _caught(tree), set(test["stubs"])
        self.caught = caught
        module = types.ModuleType("tests")  # dataclasses look their module up by name
        sys.modules["tests"], self.scope = module, vars(module)
        self.exceptions, self.lent, self.unfit = {}, False, ""
        self.current = set()
        self.open = set(test["open"])
        # A class that only holds the tested functions makes no objects that the test is about.
        named = any(name.lstrip("_")[:1].isupper() for name in stubs - caught - {"Solution"})
        self.witness.start(strict=not named)
        try:
            for name, (module, member) in test["library"].items():
                self.scope[name] = importlib.import_module(module)
                self.scope[name] = getattr(self.scope[name], member) if member else self.scope[name]
            for name in test["stubs"]:
                if name in caught:
                    self.scope[name] = self.exceptions[name] = type(name, (Exception,), {})
                else:
                    self.scope[name] = self.taken(name)
            if "numpy" in test["source"]:
                with contextlib.suppress(ImportError):
                    _nothing_is_not_everything(importlib.import_module("numpy"))
            exec(compile(tree, "<test>", "exec"), self.scope)
        except AssertionError as error:
            verdict = "failed", f"AssertionError {error}"[:300]
        except ImportError as error:
            ours = not getattr(error, "of_the_program", False)
            verdict = "harness_error" if ours else "runtime_error", f"{type(error).__name__}: {error}"[:300]
        except _Unfit as error:
            verdict = "harness_error", str(error)[:300]
        except BaseException as error:  # noqa: BLE001 - reported
            verdict = "runtime_error", f"{type(error).__name__}: {error}"[:300]
        else:
            doubt = self.witness.undecided()
            return ("harness_error", doubt) if doubt else ("passed", "")
        return ("harness_error", self.unfit[:300]) if self.unfit else verdict


def run(role: str, first: dict, receive: Any, send: Any) -> None:
    """What child.py calls once it is isolated: run tests one by one."""
    equip()
    tests = _Tests(receive, send)
    while True:
        verdict, text = tests.run(receive())
        send({"do": "verdict", "verdict": verdict, "text": text})
