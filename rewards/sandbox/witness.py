"""What the program's process says of its objects must fit together (its text is loaded in the tests' process).

That process may say anything, so it is held to what it said. Between two calls the same question has one answer, and an
iteration is repeated from what it gave the first time. In tests that name no class of the program's ("strict"), length and
items, truth and length, and both directions of a comparison must agree, and an object is not believed where a text or set
would have to know the answer.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from typing import Any

from llmrl.rewards.sandbox.standins import ask_of
from llmrl.rewards.sandbox.values import StandIn

READS = {"len", "bool", "str", "repr", "hash", "format", "getitem", "getattr", "iter", "int", "float", "abs"}
READS |= {"eq", "ne", "lt", "le", "gt", "ge", "isinstance"}
# Questions whose honest answer for a text, set or number is known from its value; an object could answer all with True.
PREDICATES = {"startswith", "endswith", "isdigit", "isalpha", "isalnum", "isupper", "islower", "isspace", "istitle"}
PREDICATES |= {"isnumeric", "isdecimal", "isidentifier", "isascii", "isprintable", "is_integer"}
PREDICATES |= {"issubset", "issuperset", "isdisjoint", "equals"}
# A comparison that holds: which one of the other way round is asked too, and what it must say.
_MIRRORED = {"eq": ("eq", True), "lt": ("lt", False), "gt": ("gt", False), "le": ("lt", False), "ge": ("gt", False)}
NO_ONE_S = secrets.token_hex(8)  # a text that no honest object equals


MOST_PAIRS = 10


def _changed(value: Any, steps: Iterator[int]) -> Any:
    """The value with other numbers and texts in it."""
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(item, steps) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, steps) for key, item in value.items()}
    if isinstance(value, str):
        return value + NO_ONE_S
    return value + next(steps) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Lied(AssertionError):
    """The program's answers about one object contradict each other."""


class Witness:
    """The program's process as the tests see it. answer(message): its answer; opaque(number): an object of its own."""

    def __init__(self, answer: Any, opaque: Any) -> None:
        self.answer, self.opaque = answer, opaque
        self.start(strict=True)

    def start(self, *, strict: bool) -> None:
        """A new test."""
        self.strict = strict
        self.spent: set[int] = set()  # iterators that have ended
        self.made: dict[int, dict] = {}  # object -> the call that made it
        self.equal: list[tuple[Any, Any]] = []
        self.forget()

    def forget(self) -> None:
        """A call may have changed any object."""
        self.answers: dict[str, dict] = {}
        self.iterations: dict[int, tuple[Any, list[Any]]] = {}

    def remembered(self, do: str, question: str, exchange: Any) -> dict:
        """The raw answer to a question; one that only reads is asked once between two calls."""
        if do not in READS:
            if do not in ("next", "value"):
                self.forget()
            return exchange()
        if question not in self.answers:
            answer = exchange()
            self.answers[question] = answer
        return self.answers[question]

    def ask(self, message: dict) -> Any:
        """What a stand-in of the program's asks."""
        do, given = message["do"], message["args"]
        if self.strict and do == "getattr" and given[0] in PREDICATES:
            raise Lied(f"an object of the program, not a plain value, was asked {given[0]}")
        if do == "iter":
            return self.iterate(message)
        if do == "next":
            return self.step(message)
        value = self.answer(message)
        if self.strict:
            self.check(do, message["object"], given, value)
        elif do == "call" and isinstance(value, StandIn):
            self.made[object.__getattribute__(value, "_number")] = message
        elif do == "eq" and value:
            self.equal.append((self.opaque(message["object"]), given[0]))
        return value

    def undecided(self) -> str:
        """Why a test that has passed says nothing: the program's own == does not tell an object from one that is made of
        other arguments. "" if it does. Asked when the test is over, because it makes new objects."""
        for pair in self.equal[:MOST_PAIRS]:
            for one, other in (pair, pair[::-1]):
                call = self.made.get(object.__getattribute__(other, "_number"))
                if self.quietly(one, "eq", NO_ONE_S):
                    return "an object of the program is equal to everything"
                if call is None:
                    continue
                changed = _changed([call["args"], call.get("kwargs", {})], itertools.count(101, 37))
                try:
                    fresh = self.answer({**call, "args": changed[0], "kwargs": changed[1]})
                except Exception:  # noqa: BLE001 - it cannot be made of these: nothing to compare
                    continue
                unlike = changed != [call["args"], call.get("kwargs", {})]
                if unlike and isinstance(fresh, StandIn) and self.quietly(one, "eq", fresh):
                    return "the test relies on an == of the program's that does not look at what its objects hold"
        return ""

    def step(self, message: dict) -> Any:
        """The next item; an iterator that has ended stays at its end."""
        if message["object"] in self.spent:
            raise StopIteration
        try:
            return self.answer(message)
        except StopIteration:
            self.spent.add(message["object"])
            raise

    def iterate(self, message: dict) -> Any:
        """The object itself if it is an iterator; else its items, each asked for once and repeated from memory."""
        found = self.iterations.get(message["object"])
        if found is None:
            iterator = self.answer(message)
            if not isinstance(iterator, StandIn):
                return iter(iterator)
            if object.__getattribute__(iterator, "_number") == message["object"]:
                return iterator
            found = self.iterations[message["object"]] = (iterator, [])
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

    def check(self, do: str, number: int, given: tuple, value: Any) -> None:
        """Raises Lied if an answer does not fit what else the object says. Only where no class is part of the test."""
        if do in _MIRRORED and value:
            one, other = self.opaque(number), given[0]
            back, wanted = _MIRRORED[do]
            if bool(self.quietly(other, back, one)) is not wanted or self.quietly(one, do, NO_ONE_S):
                raise Lied(f"{do} of two objects of the program has two answers")
            if do == "eq" and self.quietly(one, "ne", other):
                raise Lied("an object of the program is equal and not equal to another")
        if do == "len" and isinstance(value, int):
            self.same_length(number, value)
        if do == "getitem":
            self.same_item(number, given[0], value)
        if (
            do == "bool"
            and isinstance(length := self.quietly(self.opaque(number), "len"), int)
            and value != (length > 0)
        ):
            raise Lied("an object of the program has a truth that is not its length's")

    def same_length(self, number: int, length: int) -> None:
        items = self.first_items(number, length + 1)
        if isinstance(items, StandIn):
            raise Lied("an iterator of the program has a length")
        if items is not None and len(items) != length:
            raise Lied(f"an object of the program says it has {length} items and gives {len(items)}")

    def same_item(self, number: int, key: Any, value: Any) -> None:
        """What stands at a place is what an iteration gives there; of slices, where they are plain sequences."""
        if isinstance(key, slice) and isinstance(value, (list, tuple)):
            length = self.quietly(self.opaque(number), "len")
            items = self.first_items(number, length) if isinstance(length, int) else None
            if isinstance(items, list) and items[key] != list(value):
                raise Lied("a slice of an object of the program is not what its iteration gives there")
        if isinstance(key, int) and key >= 0 and isinstance(value, (int, float, str)):
            items = self.first_items(number, key + 1)
            beside = items[key] if isinstance(items, list) and len(items) > key else None
            numbers = isinstance(beside, (int, float)) and isinstance(value, (int, float))
            if (numbers or type(beside) is type(value)) and beside != value:
                raise Lied("an item of an object of the program is not what its iteration gives there")

    def first_items(self, number: int, most: int) -> Any:
        """At most so many items of an object; the object itself if it is an iterator; None if it gives none."""
        try:
            items = self.iterate({"do": "iter", "object": number, "args": (), "kwargs": {}})
            return items if isinstance(items, StandIn) else [item for item, _ in zip(items, range(most))]
        except Exception:  # noqa: BLE001 - it cannot be iterated, so there is nothing to compare
            return None

    def quietly(self, value: Any, do: str, *args: Any) -> Any:
        """An answer for a check; None where the object has none."""
        try:
            number = object.__getattribute__(value, "_number")
            return self.answer({"do": do, "object": number, "args": args, "kwargs": {}})
        except Exception:  # noqa: BLE001 - no answer is an answer here
            return None
