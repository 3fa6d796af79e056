"""Runs trusted test code in a sandboxed process without any candidate code (its text is sent there, behind values.py and
standins.py).

What the tests take from the program are stand-ins (standins.py). The program's process may say anything about its objects,
so it is held to what it said: between two calls the same question has one answer, an iteration is repeated from what it
gave the first time, and in tests that name no class of the program's, length, truth and comparisons must fit together.
Objects of the tests that the program gets are stand-ins there; it may ask for what they offer publicly.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import secrets
import sys
import types
from collections.abc import Iterator
from typing import Any

from llmrl.rewards.sandbox.standins import OPERATIONS, Kept, ask_of, equip
from llmrl.rewards.sandbox.values import StandIn, decode, encode

_READS = {"len", "bool", "str", "repr", "hash", "format", "getitem", "getattr", "eq", "lt", "le", "gt", "ge", "iter"}
_READS |= {"ne", "int", "float", "abs", "isinstance"}
# Questions whose honest answer for a text, set or number is known from its value; an object of a class that the test does
# not name could answer them all with True.
_PREDICATES = {"startswith", "endswith", "isdigit", "isalpha", "isalnum", "isupper", "islower", "isspace", "istitle"}
_PREDICATES |= {
    "isnumeric",
    "isdecimal",
    "isidentifier",
    "isascii",
    "isprintable",
    "issubset",
    "issuperset",
    "isdisjoint",
}
_PREDICATES |= {"is_integer", "equals"}
_NO_ONE_S = secrets.token_hex(8)  # a text that no honest object equals
# Modules whose objects a test may hand over and whose public attributes show nothing of the test.
_PLAIN_MODULES = {"_io", "io", "array", "re", "datetime", "random", "types", "collections", "uuid", "tests"}


class _Lied(AssertionError):
    """The program's answers about one object contradict each other."""


class _Unfit(Exception):
    """The test needs something that cannot cross to the program: the harness's failure."""


def _caught(tree: ast.Module) -> set[str]:
    """Names that the test catches as exceptions."""
    found: set[str] = set()
    for node in ast.walk(tree):
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


class _Memory:
    """What the program said about its objects since the last call that could have changed one."""

    def __init__(self) -> None:
        self.answers: dict[str, dict] = {}
        self.iterations: dict[int, tuple[Any, list[Any]]] = {}

    def forget(self) -> None:
        self.answers, self.iterations = {}, {}


class _Tests:
    """One test at a time: its scope, and the program's process behind `receive` and `send`."""

    def __init__(self, receive: Any, send: Any) -> None:
        self.receive, self.send, self.memory = receive, send, _Memory()
        self.exceptions: dict[str, type] = {}
        self.handed = Kept()
        self.current: set[int] = set()
        self.stand_ins: dict[int, StandIn] = {}
        self.scope: dict[str, Any] = {}
        self.open: set[str] = set()
        self.strict, self.unfit = True, ""

    # -- values ------------------------------------------------------------------------------------------------------
    def keep(self, value: Any) -> dict:
        """A function or object of the test goes to the program as a number."""
        simple = callable(value) and not isinstance(value, type) and type(value).__module__ != "tests"
        if not simple and (isinstance(value, type(ast)) or type(value).__name__ in ("frame", "code", "traceback")):
            raise _Unfit(f"a test cannot send a {type(value).__name__} to the program")
        number = self.handed.number(value)
        self.current.add(number)
        return {"callback" if simple or isinstance(value, type) else "own": number}

    def own(self, number: int) -> Any:
        """What this test handed over under a number. Raises LookupError for any other number."""
        if number not in self.current:
            raise LookupError(f"this test handed over no object {number}")
        return self.handed.objects[number]

    def opaque(self, number: int, kind: str = "") -> Any:
        if kind in ("callback", "own"):
            return self.own(number)
        if number not in self.stand_ins:
            self.stand_ins[number] = StandIn(number, self.ask, "opaque")
        value = self.stand_ins[number]
        if kind != "coroutine":
            return value

        async def waiting() -> Any:
            return ask_of(value, "await")

        return waiting()

    # -- questions to the program ------------------------------------------------------------------------------------
    def ask(self, message: dict) -> Any:
        do, given = message["do"], message.get("args", ())
        if self.strict and do == "getattr" and given[0] in _PREDICATES:
            raise _Lied(f"an object of the program, not a plain value, was asked {given[0]}")
        if do == "iter":
            return self.iterate(message)
        value = self.answer(message)
        if self.strict:
            self.check(do, message.get("object"), given, value)
        return value

    def answer(self, message: dict) -> Any:
        given, do = message.get("args", ()), message["do"]
        sent = {**message, "args": [encode(item, self.keep) for item in given]}
        sent["kwargs"] = {key: encode(item, self.keep) for key, item in message.get("kwargs", {}).items()}
        question = json.dumps(sent, sort_keys=True) if do in _READS else ""
        if question in self.memory.answers:
            answer = self.memory.answers[question]
        else:
            if do not in _READS and do not in ("next", "value"):
                self.memory.forget()
            answer = self.exchange(sent)
            if question:
                self.memory.answers[question] = answer
        if "error" in answer:
            raise self.error(answer)
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

    def error(self, answer: dict) -> Exception:
        """The program's exception, as the nearest of its kinds that the test or Python knows."""
        if "StandIn" in answer.get("text", "") and self.current:
            self.unfit = self.unfit or answer["text"]
        for name in answer.get("kinds", [answer["error"]]):
            kind = self.exceptions.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
                try:
                    raised = kind(answer["text"])
                except TypeError:
                    continue
                raised.of_the_program = True  # type: ignore[attr-defined]
                return raised
        return RuntimeError(answer["error"])

    # -- what it said must fit together ------------------------------------------------------------------------------
    def iterate(self, message: dict) -> Any:
        """The object itself if it is an iterator; else its items, each asked for once and repeated from memory."""
        found = self.memory.iterations.get(message["object"])
        if found is None:
            iterator = self.answer(message)
            if not isinstance(iterator, StandIn):
                return iter(iterator)
            if object.__getattribute__(iterator, "_number") == message["object"]:
                return iterator
            found = self.memory.iterations[message["object"]] = (iterator, [])
        return self.items(*found)

    def items(self, iterator: Any, seen: list[Any]) -> Iterator[Any]:
        at = 0
        while True:
            if at == len(seen):
                try:
                    seen.append(ask_of(iterator, "next"))
                except StopIteration:
                    return
            yield seen[at]
            at += 1

    def check(self, do: str, number: int | None, given: tuple, value: Any) -> None:
        """Raises _Lied if an answer does not fit what else the object says. Only where no class is part of the test."""
        if number is None:
            return
        if do in ("eq", "lt", "gt") and value:
            one, other = self.opaque(number), given[0]
            mirrored = bool(self.quietly(other, do, one))
            if mirrored is not (do == "eq") or self.quietly(one, do, _NO_ONE_S):
                raise _Lied(f"{do} of two objects of the program has two answers")
            if do == "eq" and self.quietly(one, "ne", other):
                raise _Lied("an object of the program is equal and not equal to another")
        if do == "len" and isinstance(value, int):
            self.same_length(number, value)
        if (
            do == "bool"
            and isinstance(length := self.quietly(self.opaque(number), "len"), int)
            and value != (length > 0)
        ):
            raise _Lied("an object of the program has a truth that is not its length's")

    def same_length(self, number: int, length: int) -> None:
        try:
            items = self.iterate({"do": "iter", "object": number, "args": (), "kwargs": {}})
            if isinstance(items, StandIn):  # an iterator: counting would use it up
                return
            count = sum(1 for _ in zip(range(length + 1), items))
        except _Lied:
            raise
        except Exception:  # noqa: BLE001 - it cannot be iterated, so there is nothing to compare
            return
        if count != length:
            raise _Lied(f"an object of the program says it has {length} items and gives {count}")

    def quietly(self, value: Any, do: str, *args: Any) -> Any:
        """An answer for a check; None where the object has none."""
        try:
            number = object.__getattribute__(value, "_number")
            return self.answer({"do": do, "object": number, "args": args, "kwargs": {}})
        except Exception:  # noqa: BLE001 - no answer is an answer here
            return None

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
        module = types.ModuleType("tests")  # dataclasses look their module up by name
        sys.modules["tests"], self.scope = module, vars(module)
        self.exceptions, self.unfit = {}, ""
        self.current = set()
        self.memory.forget()
        self.open = set(test["open"])
        self.strict = not any(name.lstrip("_")[:1].isupper() for name in stubs - caught)
        try:
            for name, (module, member) in test["library"].items():
                self.scope[name] = importlib.import_module(module)
                self.scope[name] = getattr(self.scope[name], member) if member else self.scope[name]
            for name in test["stubs"]:
                if name in caught:
                    self.scope[name] = self.exceptions[name] = type(name, (Exception,), {})
                else:
                    self.scope[name] = self.taken(name)
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
            return "passed", ""
        return ("harness_error", self.unfit[:300]) if self.unfit else verdict


def run(role: str, first: dict, receive: Any, send: Any) -> None:
    """What child.py calls once it is isolated: run tests one by one."""
    equip()
    tests = _Tests(receive, send)
    while True:
        verdict, text = tests.run(receive())
        send({"do": "verdict", "verdict": verdict, "text": text})
