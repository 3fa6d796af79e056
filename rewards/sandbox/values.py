"""Values on their way in and out of a sandboxed process: tagged JSON of exact builtin and standard types.

Its text is loaded in the box, in front of standins.py and runner.py or tester.py. What `encode` reads of a value it takes
with the base classes' own methods, so that an overridden `__eq__` or `__repr__` says nothing.
"""

from __future__ import annotations

import re
import sys
from typing import Any

DEEPEST = 200
MOST_OF_ONE_HASH = 64  # a set or dict of n values with one hash takes n^2 steps to build
MOST_FRACTION_BITS = 20_000  # the greatest common divisor of n bits takes n^2 steps
_BUILTIN_TYPES: dict[str, type] = {
    t.__name__: t for t in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex)
}
_BUILTIN_FUNCTIONS: dict[str, Any] = {
    f.__name__: f
    for f in (len, sum, min, max, abs, sorted, any, all, ord, chr, repr, round, hash, divmod, pow, bin, hex)
}
# Types of the standard library, by module and name: what rebuilds a value.
_STANDARD: dict[str, Any] = {
    "fractions.Fraction": lambda v: [v.numerator, v.denominator],
    "decimal.Decimal": lambda v: [str(v)],
    "datetime.date": lambda v: [v.year, v.month, v.day],
    "datetime.datetime": lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    "datetime.timedelta": lambda v: [v.days, v.seconds, v.microseconds],
    "collections.deque": lambda v: [list(v)],
    "collections.Counter": lambda v: [dict(v)],
    "collections.OrderedDict": lambda v: [dict(v)],
}


class StandIn:
    """A value that stays in the other process; see standins.py, which gives it its operators.

    tag: how it is written when it goes back: "opaque" (of the program) or "own" (of a test).
    """

    def __init__(self, number: int, ask: Any, tag: str) -> None:
        for name, value in (("_number", number), ("_ask", ask), ("_tag", tag)):
            object.__setattr__(self, name, value)


def _of_numpy(value: Any) -> Any:
    """JSON of a numpy array or number; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or value.dtype.kind not in "biufcU":
        return None
    if isinstance(value, numpy.generic):
        return encode(value.item())
    return {"ndarray": [str(value.dtype.str), encode(value.tolist())]}


def encode(value: Any, keep: Any = None, depth: int = 0) -> Any:
    """Tagged JSON of a value made of builtin types; anything else goes through `keep` (or raises TypeError)."""
    kind = type(value)
    if depth > DEEPEST:
        raise ValueError("a value nested too deeply")
    if value is None or kind is bool or kind is str:
        return value
    if issubclass(kind, StandIn):
        return {object.__getattribute__(value, "_tag"): object.__getattribute__(value, "_number")}
    if (kind.__module__ or "") == "numpy" and (data := _of_numpy(value)) is not None:
        return data
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
    standard = f"{kind.__module__}.{kind.__qualname__}"
    if standard in _STANDARD and getattr(value, "tzinfo", None) is None:
        return {"standard": [standard, *(encode(part, keep, depth + 1) for part in _STANDARD[standard](value))]}
    fields = getattr(kind, "_fields", None)
    if issubclass(kind, tuple) and isinstance(fields, tuple) and all(isinstance(name, str) for name in fields):
        return {
            "named": [str(kind.__name__), list(fields), [encode(v, keep, depth + 1) for v in tuple.__iter__(value)]]
        }
    for base, tag in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if issubclass(kind, base):
            return {tag: [encode(item, keep, depth + 1) for item in base.__iter__(value)]}
    if issubclass(kind, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in pairs]}
    if kind is type and (named := [name for name, known in _BUILTIN_TYPES.items() if known is value]):
        return {"type": named[0]}
    if named := [name for name, known in _BUILTIN_FUNCTIONS.items() if known is value]:
        return {"function": named[0]}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    if keep is None:
        raise TypeError(f"a {kind.__name__}")
    kept = keep(value)
    return kept if isinstance(kept, dict) else {"opaque": kept, "type": str(kind.__name__)[:60]}


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
        items = [decode(item, opaque) for item in content]
        return kind(_few_of_one_hash(items) if tag.endswith("set") else items)
    if tag == "dict":
        keys = _few_of_one_hash([decode(key, opaque) for key, _ in content])
        return dict(zip(keys, [decode(item, opaque) for _, item in content]))
    if tag == "standard":
        return _rebuilt(content[0], [decode(part, opaque) for part in content[1:]])
    if tag == "named":
        items = [decode(item, opaque) for item in content[2]]
        if opaque is None:  # then it is only compared, and equal to the plain tuple; making many classes is slow
            return tuple(items)
        from collections import namedtuple

        return namedtuple(content[0], content[1])(*items)
    if tag == "function" and content in _BUILTIN_FUNCTIONS:
        return _BUILTIN_FUNCTIONS[content]
    if tag == "range":
        return range(*content)
    if tag == "type" and content in _BUILTIN_TYPES:
        return _BUILTIN_TYPES[content]
    if tag == "ndarray" and opaque is not None:  # only in a sandboxed process, whose memory is limited
        return _array(*content)
    if tag in ("callback", "own") and opaque is not None:
        return opaque(content, tag)
    if tag == "opaque" and opaque is not None:
        return opaque(content, data.get("type")) if data.get("type") == "coroutine" else opaque(content)
    raise ValueError(f"not a value: {tag}")


def _array(dtype: Any, items: Any) -> Any:
    try:
        import numpy
    except ImportError:
        raise ValueError("not a value: an array, where there is no numpy") from None
    if not isinstance(dtype, str) or not re.fullmatch(r"[<>|=]?[biufcU][0-9]{1,5}", dtype):
        raise ValueError("not a value: an array of objects")
    return numpy.array(decode(items), dtype=dtype)


def _few_of_one_hash(items: list[Any]) -> list[Any]:
    """The items, or ValueError if a program chose them so that they are slow to put into a set or dict."""
    counts: dict[int, int] = {}
    for item in items if len(items) > MOST_OF_ONE_HASH else ():
        key = hash(item)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > MOST_OF_ONE_HASH:
            raise ValueError(f"more than {MOST_OF_ONE_HASH} values with one hash in a set or dict")
    return items


def _rebuilt(name: str, parts: list[Any]) -> Any:
    import importlib

    if name not in _STANDARD:
        raise ValueError(f"not a value: {name[:60]}")
    module, _, kind = name.partition(".")
    wanted = {"Fraction": int, "Decimal": str, "deque": list, "Counter": dict, "OrderedDict": dict}.get(kind, object)
    if not all(isinstance(part, wanted) for part in parts):
        raise ValueError(f"not a value: {name}")
    if kind == "Fraction" and any(part.bit_length() > MOST_FRACTION_BITS for part in parts):
        raise ValueError(f"a fraction of more than {MOST_FRACTION_BITS} bits")
    try:
        return getattr(importlib.import_module(module), kind)(*parts)
    except ArithmeticError as error:
        raise ValueError(f"not a value: {name}") from error
