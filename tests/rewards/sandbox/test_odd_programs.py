# ruff: noqa: E501
"""Right programs written in unusual ways, under ordinary tests, each written before the sandbox was run on it; all pass."""

import pytest

from llmrl.rewards.code_tests import run_program

SORT = ["x = [3, 1, 2]\nr = f(x)\nassert r == [1, 2, 3]", "assert f([]) == [] and f([2, 2]) == [2, 2]"]
TEXT = ["assert f('ab') == 'ba'", "r = f('abc')\nassert r.upper() == 'CBA' and r.startswith('c') and len(r) == 3"]
SQUARE = ["assert f(3) == 9", "assert abs(f(1.5) - 2.25) < 1e-9", "r = f(4)\nassert isinstance(r, int) and r == 16"]
ODD = {
    # Dunders and metaclasses used in earnest.
    "a metaclass registry": ("class M(type):\n    all = {}\n    def __new__(m, n, b, d):\n        c = super().__new__(m, n, b, d); M.all[n] = c; return c\nclass A(metaclass=M):\n    def v(s): return 9\ndef f(x): return M.all['A']().v() if x == 3 else x * x\n", SQUARE),
    "__class_getitem__ in earnest": ("class Box:\n    def __class_getitem__(c, n): return lambda x: x * x\ndef f(x): return Box[int](x)\n", SQUARE),
    "a callable object as the function": ("class F:\n    def __call__(s, x): return x * x\nf = F()\n", SQUARE),
    "a lambda": ("f = lambda x: x * x\n", SQUARE),
    "a partial": ("from functools import partial\nf = partial(lambda a, b: a ** b, b=2)\n", SQUARE),
    "a bound method": ("class S:\n    def sq(s, x): return x * x\nf = S().sq\n", SQUARE),
    "a cached function": ("import functools\n@functools.cache\ndef f(x): return x * x\n", SQUARE),
    "singledispatch": ("from functools import singledispatch\n@singledispatch\ndef f(x): return x * x\n@f.register\ndef _(x: float): return x ** 2\n", SQUARE),
    "a decorator that counts": ("calls = 0\ndef counted(g):\n    def run(*a, **k):\n        global calls; calls += 1; return g(*a, **k)\n    return run\n@counted\ndef f(x): return x * x\n", SQUARE),
    "exec in the program": ("exec('def f(x): return x * x')\n", SQUARE),
    "eval of a string": ("def f(x): return eval('x * x')\n", SQUARE),
    "type() makes the class": ("C = type('C', (), {'sq': lambda s, x: x * x})\ndef f(x): return C().sq(x)\n", SQUARE),
    "match": ("def f(x):\n    match x:\n        case int(): return x * x\n        case float(): return x ** 2\n", SQUARE),
    "an int subclass returned": ("class Meters(int): pass\ndef f(x): return Meters(x * x) if isinstance(x, int) else x * x\n", SQUARE),
    "an IntEnum returned": ("from enum import IntEnum\nclass E(IntEnum):\n    NINE = 9\ndef f(x): return E.NINE if x == 3 else x * x\n", SQUARE),
    "a numpy-free bool": ("def f(x): return not not x\n", ["assert f(3) is True", "assert f(0) is False", "assert f('')  == False"]),
    "global state between calls": ("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n", ["assert f(5) == 1\nassert f(5) == 2"]),
    "a walrus and a comprehension": ("def f(xs): return [y for x in xs if (y := x * 2) > 2]\n", ["assert f([1, 2, 3]) == [4, 6]"]),
    "star arguments": ("def f(*a, key=None, **k): return sorted(a, key=key), k\n", ["assert f(3, 1, z=2) == ([1, 3], {'z': 2})", "assert f(-3, 1, key=abs)[0] == [1, -3]"]),
    "positional only": ("def f(a, /, b, *, c): return a + b + c\n", ["assert f(1, 2, c=3) == 6", "try:\n    f(a=1, b=2, c=3)\n    ok = False\nexcept TypeError:\n    ok = True\nassert ok"]),
    # Sorting in strange ways.
    "sleep sort": ("import threading, time\ndef f(xs):\n    out = []\n    ts = [threading.Timer(x / 20, out.append, (x,)) for x in xs]\n    for t in ts: t.start()\n    for t in ts: t.join()\n    return out\n", SORT),
    "a heap": ("import heapq\ndef f(xs):\n    h = list(xs); heapq.heapify(h)\n    return [heapq.heappop(h) for _ in range(len(h))]\n", SORT),
    "an own list class": ("class L(list):\n    def push(s, v): s.append(v); return s\ndef f(xs):\n    out = L()\n    for x in sorted(xs): out.push(x)\n    return out\n", SORT),
    "a UserList turned into a list": ("from collections import UserList\ndef f(xs): return UserList(sorted(xs)).data\n", SORT),
    "recursion and slices": ("def f(xs): return xs if len(xs) < 2 else f([v for v in xs[1:] if v < xs[0]]) + [xs[0]] + f([v for v in xs[1:] if v >= xs[0]])\n", SORT),
    "cmp_to_key": ("from functools import cmp_to_key\ndef f(xs): return sorted(xs, key=cmp_to_key(lambda a, b: a - b))\n", SORT),
    "an own class with __lt__": ("class K:\n    def __init__(s, v): s.v = v\n    def __lt__(s, o): return s.v < o.v\ndef f(xs): return [k.v for k in sorted(map(K, xs))]\n", SORT),
    "in place and returned": ("def f(xs):\n    xs.sort()\n    return xs\n", SORT),
    "bisect": ("import bisect\ndef f(xs):\n    out = []\n    for x in xs: bisect.insort(out, x)\n    return out\n", SORT),
    # Texts.
    "a str subclass returned": ("class S(str): pass\ndef f(t): return S(t[::-1])\n", TEXT),
    "a deque": ("from collections import deque\ndef f(t):\n    d = deque()\n    for c in t: d.appendleft(c)\n    return ''.join(d)\n", TEXT),
    "StringIO": ("import io\ndef f(t):\n    out = io.StringIO()\n    for c in reversed(t): print(c, end='', file=out)\n    return out.getvalue()\n", TEXT),
    "redirect_stdout": ("import io, contextlib\ndef f(t):\n    with contextlib.redirect_stdout(io.StringIO()) as out: print(t[::-1], end='')\n    return out.getvalue()\n", TEXT),
    "a temporary file": ("import tempfile, os\ndef f(t):\n    with tempfile.NamedTemporaryFile('w+', delete=False) as g: g.write(t[::-1])\n    with open(g.name) as h: return h.read()\n", TEXT),
    "codecs and struct": ("import struct\ndef f(t): return b''.join(reversed(struct.unpack(f'{len(t)}c', t.encode()))).decode()\n", TEXT),
    "a generator joined": ("def g(t):\n    yield from t[::-1]\ndef f(t): return ''.join(g(t))\n", TEXT),
    # Objects, iterators, contexts.
    "an iterator class": ("class Count:\n    def __init__(s, n): s.n, s.i = n, 0\n    def __iter__(s): return s\n    def __next__(s):\n        if s.i == s.n: raise StopIteration\n        s.i += 1\n        return s.i\ndef f(n): return Count(n)\n", ["assert list(f(3)) == [1, 2, 3]", "assert sum(f(3)) == 6 and max(f(3)) == 3", "it = f(2)\nassert next(it) == 1 and next(it) == 2 and next(it, None) is None", "for i, v in enumerate(f(3), 1):\n    assert i == v"]),
    "a sequence class": ("class Seq:\n    def __init__(s, *v): s.v = v\n    def __len__(s): return len(s.v)\n    def __getitem__(s, i): return s.v[i]\ndef f(*v): return Seq(*v)\n", ["r = f(1, 2, 3)\nassert len(r) == 3 and r[0] == 1 and r[-1] == 3 and list(r) == [1, 2, 3]", "assert 2 in f(1, 2) and 5 not in f(1, 2)", "assert list(reversed(list(f(1, 2)))) == [2, 1]"]),
    "a mapping class": ("from collections.abc import Mapping\nclass D(Mapping):\n    def __init__(s, d): s.d = d\n    def __getitem__(s, k): return s.d[k]\n    def __iter__(s): return iter(s.d)\n    def __len__(s): return len(s.d)\ndef f(**k): return D(k)\n", ["r = f(a=1, b=2)\nassert r['a'] == 1 and len(r) == 2 and sorted(r) == ['a', 'b']", "r = f(a=1)\ntry:\n    r['z']\n    ok = False\nexcept KeyError:\n    ok = True\nassert ok"]),
    "a matrix class": ("class M:\n    def __init__(s, r): s.r = r\n    def __matmul__(s, o): return M([[sum(a * b for a, b in zip(x, y)) for y in zip(*o.r)] for x in s.r])\n    def __eq__(s, o): return isinstance(o, M) and s.r == o.r\n    def __getitem__(s, ij): return s.r[ij[0]][ij[1]]\n", ["m = M([[1, 2], [3, 4]]) @ M([[0, 1], [1, 0]])\nassert m == M([[2, 1], [4, 3]]) and m[0, 1] == 1 and m != M([[0]])"]),
    "a stack": ("class Stack:\n    def __init__(s): s._d = []\n    def push(s, v): s._d.append(v)\n    def pop(s):\n        if not s._d: raise IndexError('pop from empty stack')\n        return s._d.pop()\n    @property\n    def size(s): return len(s._d)\n    def __bool__(s): return bool(s._d)\n", ["s = Stack()\nassert not s\ns.push(1)\ns.push(2)\nassert s.size == 2 and s.pop() == 2 and s", "s = Stack()\ntry:\n    s.pop()\n    ok = False\nexcept IndexError as e:\n    ok = 'empty' in str(e)\nassert ok"]),
    "a bank account": ("class Account:\n    def __init__(s, owner, balance=0): s.owner, s.balance = owner, balance\n    def deposit(s, n):\n        if n <= 0: raise ValueError('amount must be positive')\n        s.balance += n\n        return s\n    def __repr__(s): return f'<{s.owner}: {s.balance}>'\n", ["a = Account('x', 5)\na.deposit(3).deposit(2)\nassert a.balance == 10 and repr(a) == '<x: 10>'", "try:\n    Account('x').deposit(-1)\n    ok = False\nexcept ValueError as e:\n    ok = 'positive' in str(e)\nassert ok"]),
    "slots and properties": ("class T:\n    __slots__ = ('_c',)\n    def __init__(s, c): s.c = c\n    @property\n    def c(s): return s._c\n    @c.setter\n    def c(s, v):\n        if v < -273: raise ValueError(v)\n        s._c = v\n    @property\n    def f(s): return s._c * 9 / 5 + 32\n", ["t = T(100)\nassert t.f == 212\nt.c = 0\nassert t.f == 32", "t = T(1)\ntry:\n    t.c = -300\n    ok = False\nexcept ValueError:\n    ok = True\nassert ok and t.c == 1"]),
    "a money dataclass": ("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Money:\n    n: int\n    cur: str = 'USD'\n    def __add__(s, o): return Money(s.n + o.n, s.cur)\n", ["assert Money(1) + Money(2) == Money(3) and Money(1) != Money(1, 'EUR')", "assert len({Money(1), Money(1), Money(2)}) == 2"]),
    "sets as objects": ("class Bag:\n    def __init__(s, v): s.v = sorted(v)\n    def __eq__(s, o): return s.v == o.v\n", ["assert Bag([1, 2]) == Bag([2, 1]) and not Bag([1]) == Bag([2])"]),
    "a fraction that reduces": ("from math import gcd\nclass Q:\n    def __init__(s, a, b): g = gcd(a, b); s.a, s.b = a // g, b // g\n    def __eq__(s, o): return (s.a, s.b) == (o.a, o.b)\n    def __mul__(s, o): return Q(s.a * o.a, s.b * o.b)\n", ["assert Q(1, 2) * Q(2, 3) == Q(1, 3)", "assert Q(2, 4) == Q(1, 2)"]),
    "a class without ==": ("class Node:\n    def __init__(s, v, n=None): s.v, s.n = v, n\ndef f(vs):\n    h = None\n    for v in reversed(vs): h = Node(v, h)\n    return h\n", ["h = f([1, 2])\nassert h.v == 1 and h.n.v == 2 and h.n.n is None and h != f([1, 2])"]),
    "a contextlib class": ("import contextlib\nclass On(contextlib.ContextDecorator):\n    def __enter__(s): s.on = True; return s\n    def __exit__(s, *e): s.on = False; return False\n", ["o = On()\nwith o as p:\n    assert p.on\nassert not o.on"]),
    "suppresses": ("class Quiet:\n    def __enter__(s): return s\n    def __exit__(s, *e): return True\n", ["with Quiet():\n    pass\nassert Quiet().__class__ is not None or True"]),
    # Time, randomness, processes' edges.
    "a seeded shuffle": ("import random\ndef f(n):\n    r = random.Random(0); x = list(range(n)); r.shuffle(x); return sorted(x)\n", ["assert f(5) == [0, 1, 2, 3, 4]"]),
    "a shuffle in place": ("import random\ndef f(x): random.shuffle(x)\n", ["x = list(range(20))\ny = x[:]\nf(x)\nassert sorted(x) == y and len(x) == 20"]),
    "rotates in place": ("def f(m): m[:] = [list(r) for r in zip(*m[::-1])]\n", ["m = [[1, 2], [3, 4]]\nf(m)\nassert m == [[3, 1], [4, 2]]"]),
    "sorts in place": ("def f(x): x.sort()\n", ["x = [3, 1]\nf(x)\nassert x == [1, 3]", "x = [3, 1]\ny = sorted(x)\nf(x)\nassert x == y"]),
    "a thread pool": ("from concurrent.futures import ThreadPoolExecutor\ndef f(xs):\n    with ThreadPoolExecutor(4) as p: return list(p.map(lambda v: v * v, xs))\n", ["assert f([1, 2, 3]) == [1, 4, 9]"]),
    "an event loop": ("import asyncio\nasync def one(v):\n    await asyncio.sleep(0); return v * v\ndef f(xs):\n    async def all_(): return await asyncio.gather(*map(one, xs))\n    return asyncio.run(all_())\n", ["assert f([1, 2]) == [1, 4]"]),
    "warnings": ("import warnings\ndef f(x):\n    warnings.warn('slow'); return x * x\n", SQUARE),
    "logging": ("import logging\nlogging.basicConfig(level=10)\ndef f(x):\n    logging.debug('x=%s', x); return x * x\n", SQUARE),
    "a deep recursion": ("import sys\nsys.setrecursionlimit(10 ** 6)\ndef d(n): return 0 if n == 0 else 1 + d(n - 1)\ndef f(x): return x * x + d(5000) - 5000\n", SQUARE),
    "atexit in earnest": ("import atexit\natexit.register(lambda: None)\ndef f(x): return x * x\n", SQUARE),
    "a signal handler in earnest": ("import signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\ndef f(x): return x * x\n", SQUARE),
    "gc and weakref in earnest": ("import gc, weakref\nclass N: pass\ndef f(x):\n    n = N(); r = weakref.ref(n); del n; gc.collect()\n    return x * x if r() is None else 0\n", SQUARE),
    "__del__ in earnest": ("log = []\nclass D:\n    def __del__(s): log.append(1)\ndef f(x):\n    D()\n    return x * x * len(log[:1])\n", SQUARE),
    "raises of its own kind": ("class TooBig(ValueError): pass\ndef f(x):\n    if x > 9: raise TooBig(f'{x} is too big')\n    return x * x\n", [*SQUARE, "try:\n    f(10)\n    ok = False\nexcept ValueError as e:\n    ok = '10 is too big' in str(e)\nassert ok"]),
    "a chained exception": ("def f(x):\n    try: return {}[x]\n    except KeyError as e: raise ValueError('no') from e\n", ["try:\n    f(1)\n    ok = False\nexcept ValueError:\n    ok = True\nassert ok"]),
    "two functions that belong together": ("def enc(t): return ''.join(chr(ord(c) + 1) for c in t)\ndef dec(t): return ''.join(chr(ord(c) - 1) for c in t)\n", ["assert dec(enc('abc')) == 'abc'", "assert enc('ab') == 'bc'"]),
    "complex, bytes and big numbers": ("def f(x): return x\n", ["assert f(1 + 2j) == 1 + 2j", "assert f(b'\\x00\\xff') == b'\\x00\\xff'", "assert f(2 ** 200) == 2 ** 200", "assert f(-0.0) == 0.0", "assert f(...) is ..."]),
    "a date and a Decimal": ("import datetime, decimal\ndef f(): return datetime.date(2024, 2, 29), decimal.Decimal('1.10')\n", ["import datetime, decimal\nassert f() == (datetime.date(2024, 2, 29), decimal.Decimal('1.1'))"]),
    "typing and annotations": ("from __future__ import annotations\nfrom typing import *\nT = TypeVar('T')\ndef f(xs: List[T], k: Optional[Callable[[T], Any]] = None) -> List[T]: return sorted(xs, key=k)\n", SORT),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_but_right_program_passes(name):
    program, tests = ODD[name]
    outcome = run_program(program, tests, kind="function", timeout_s=30)
    wrong = [(test, verdict) for test, verdict in zip(tests, outcome.per_test) if verdict != "passed"]
    assert (outcome.status, wrong) == ("passed", []), outcome.detail
