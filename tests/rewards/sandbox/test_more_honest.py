# ruff: noqa: E501
"""Right programs of unusual forms, written before the sandbox was run on them; all pass."""

import pytest

from llmrl.rewards.code_tests import run_program

FUNCTIONS = {
    'CRLF, tabs and a byte order mark': ('\ufeffdef f(x):\r\n\tif x:\r\n\t\treturn x * x\r\n\treturn 0\r\n', ['assert f(3) == 9', 'assert f(0) == 0']),
    'a form feed and a line continuation': ('\x0cdef f(a, \\\n      b):\n    return a + \\\n        b\n', ['assert f(1, 2) == 3']),
    'letters of other alphabets': ('def f(größe, 幅): return größe * 幅\n', ['assert f(3, 4) == 12']),
    'numpy with a fallback': ('try:\n    import numpy as np\nexcept ImportError:\n    np = None\ndef f(xs): return float(np.mean(xs)) if np else sum(xs) / len(xs)\n', ['assert f([1, 2, 3]) == 2.0']),
    'lazy builtins as results': ('def f(xs): return map(lambda v: v + 1, xs)\ndef g(xs): return zip(xs, xs[1:])\ndef h(d): return d.items()\ndef r(xs): return reversed(xs)\n', ['assert list(f([1, 2])) == [2, 3]', 'assert list(g([1, 2, 3])) == [(1, 2), (2, 3)]', "assert set(h({'a': 1})) == {('a', 1)}", 'assert list(r([1, 2])) == [2, 1]', 'assert sum(f([1, 2])) == 5']),
    'dict keys compared with a set': ('def f(d): return d.keys()\n', ["assert set(f({'a': 1})) == {'a'}", "assert sorted(f({'b': 1, 'a': 2})) == ['a', 'b']"]),
    'defaultdict, OrderedDict and Counter as dicts': ('from collections import *\ndef f(t):\n    d = defaultdict(list)\n    for i, c in enumerate(t): d[c].append(i)\n    return d\ndef g(t): return OrderedDict(sorted(Counter(t).items()))\ndef h(t): return Counter(t)\n', ["assert f('aba') == {'a': [0, 2], 'b': [1]}", "assert g('ba') == {'a': 1, 'b': 1}", "assert h('aab')['a'] == 2 and h('aab')['z'] == 0", "assert h('aab').most_common(1) == [('a', 2)]"]),
    'not a number': ('import math\ndef f(x): return math.nan if x < 0 else math.sqrt(x)\n', ['import math\nassert math.isnan(f(-1)) and f(4) == 2', 'assert f(-1) != f(-1)']),
    'infinities': ("def f(xs): return min(xs, default=float('inf'))\n", ["assert f([]) == float('inf')", 'import math\nassert math.isinf(f([])) and f([2, 1]) == 1']),
    'an async generator': ('import asyncio\nasync def gen(n):\n    for i in range(n): yield i\ndef f(n):\n    async def go(): return [v async for v in gen(n)]\n    return asyncio.run(go())\n', ['assert f(3) == [0, 1, 2]']),
    'the Y combinator': ('Y = lambda g: (lambda x: x(x))(lambda x: g(lambda *a: x(x)(*a)))\nf = Y(lambda me: lambda n: 1 if n == 0 else n * me(n - 1))\n', ['assert f(5) == 120']),
    'a class decorated twice': ('from dataclasses import dataclass, field\nfrom functools import total_ordering\n@total_ordering\n@dataclass\nclass V:\n    n: int\n    tags: list = field(default_factory=list, compare=False)\n    def __lt__(s, o): return s.n < o.n\n', ['assert V(1) < V(2) and V(2) >= V(1) and max(V(1), V(3)).n == 3', "a = V(1)\na.tags.append('x')\nassert V(1).tags == [] and a == V(1)"]),
    'a cached property and a class method': ("from functools import cached_property\nclass C:\n    made = 0\n    def __init__(s, r): s.r = r; C.made += 1\n    @cached_property\n    def area(s): return 3 * s.r ** 2\n    @classmethod\n    def unit(c): return c(1)\n    @staticmethod\n    def name(): return 'circle'\n", ["c = C.unit()\nassert c.area == 3 and C.name() == 'circle' and c.name() == 'circle'"]),
    'NamedTuple with methods': ('from typing import NamedTuple\nclass P(NamedTuple):\n    x: float\n    y: float = 0\n    def norm(s): return (s.x ** 2 + s.y ** 2) ** .5\ndef f(): return P(3, 4)\n', ['p = f()\nassert p.x == 3 and p == (3, 4) and p[1] == 4', 'x, y = f()\nassert (x, y) == (3, 4)']),
    'an abstract base and its heirs': ('from abc import ABC, abstractmethod\nclass Shape(ABC):\n    @abstractmethod\n    def area(s): ...\nclass Sq(Shape):\n    def __init__(s, a): s.a = a\n    def area(s): return s.a ** 2\n', ['assert Sq(3).area() == 9 and isinstance(Sq(1), Shape)', 'try:\n    Shape()\n    ok = False\nexcept TypeError:\n    ok = True\nassert ok']),
    'Flag and StrEnum': ("from enum import Flag, StrEnum, auto\nclass P(Flag):\n    R = auto()\n    W = auto()\nclass C(StrEnum):\n    RED = 'red'\ndef f(): return C.RED\n", ["assert f() == 'red' and f().upper() == 'RED'", 'assert P.R | P.W != P.R and P.R in (P.R | P.W)']),
    'prints while it works': ("def f(x):\n    print('debug', x, flush=True)\n    import sys\n    sys.stderr.write('note\\n')\n    return x * x\n", ['assert f(3) == 9', 'import io, contextlib\nassert f(4) == 16']),
    'a main that would exit': ("import sys\ndef f(x): return x + 1\ndef main():\n    print(f(int(input())))\n    sys.exit(3)\nif __name__ == '__main__':\n    main()\n", ['assert f(1) == 2']),
    'string templates and regular expressions': ("import re, string\nfrom string import Template\ndef f(t): return re.sub(r'(\\w+)@(\\w+)', lambda m: Template('$b at $a').substitute(a=m[1], b=m[2]), t)\n", ["assert f('me@home') == 'home at me'"]),
    'sets of frozensets and tuples of sets': ('from itertools import combinations\ndef f(xs): return {frozenset(c) for c in combinations(xs, 2)}\n', ['assert f([1, 2, 3]) == {frozenset({1, 2}), frozenset({1, 3}), frozenset({2, 3})}', 'assert len(f([1, 2])) == 1']),
    'bytes, bytearray and memoryview': ('def f(b): return bytes(reversed(b))\ndef g(b):\n    b.reverse()\ndef h(b): return memoryview(b)[1:3]\n', ["assert f(b'ab') == b'ba'", "b = bytearray(b'ab')\ng(b)\nassert b == b'ba'", "assert bytes(h(b'abcd')) == b'bc'"]),
    'Decimal and Fraction': ("from decimal import Decimal, ROUND_HALF_UP\nfrom fractions import Fraction\ndef f(x): return Decimal(x).quantize(Decimal('0.01'), ROUND_HALF_UP)\ndef g(a, b): return Fraction(a, b)\n", ["from decimal import Decimal\nassert f('2.345') == Decimal('2.35') and str(f('1')) == '1.00'", 'from fractions import Fraction\nassert g(2, 4) == Fraction(1, 2) and g(1, 2) == 0.5 and g(2, 4).denominator == 2']),
    'a recursive type and a visitor': ('class Num:\n    def __init__(s, v): s.v = v\n    def accept(s, w): return w.num(s)\nclass Add:\n    def __init__(s, a, b): s.a, s.b = a, b\n    def accept(s, w): return w.add(s)\nclass Eval:\n    def num(s, n): return n.v\n    def add(s, n): return n.a.accept(s) + n.b.accept(s)\n', ['assert Add(Num(1), Add(Num(2), Num(3))).accept(Eval()) == 6']),
    'operator overloading chains': ("class Vec:\n    def __init__(s, *v): s.v = v\n    def __add__(s, o): return Vec(*(a + b for a, b in zip(s.v, o.v)))\n    def __neg__(s): return Vec(*(-a for a in s.v))\n    def __eq__(s, o): return s.v == o.v\n    def __repr__(s): return f'Vec{s.v}'\n", ['assert Vec(1, 2) + Vec(3, 4) == Vec(4, 6)', "assert -Vec(1, 2) == Vec(-1, -2) and repr(Vec(1, 2)) == 'Vec(1, 2)'", "assert str(Vec(1)) == 'Vec(1,)'"]),
}  # fmt: skip
SCRIPTS = {
    'iter of input until empty': ("s = 0\nfor line in iter(input, ''):\n    s += int(line)\nprint(s)", '1\n2\n\n', '3'),
    'os.write to the descriptor': ("import os\nn = int(input())\nos.write(1, f'{n * n}\\n'.encode())", '3\n', '9'),
    'atexit prints the result': ('import atexit\nn = int(input())\natexit.register(lambda: print(n * n))', '3\n', '9'),
    'a generator of tokens': ('import sys\ndef tokens():\n    for line in sys.stdin:\n        yield from line.split()\nt = tokens()\nn = int(next(t))\nprint(sum(int(next(t)) for _ in range(n)))', '2\n5\n6', '11'),
    'print with sep, end and file': ("import sys\nprint(*[1, 2, 3], sep=',', end='!\\n', file=sys.stdout, flush=True)", '', '1,2,3!'),
    'SystemExit raised after printing': ("print('ok')\nraise SystemExit", '', 'ok'),
    'SystemExit(0) from a nested call': ("import sys\ndef go():\n    print('yes')\n    sys.exit(0)\ntry:\n    go()\nfinally:\n    print('bye')", '', 'yes\nbye'),
    'StringIO collected and printed': ("import io, sys\nout = io.StringIO()\nprint('a', file=out)\nprint('b', file=out)\nsys.stdout.write(out.getvalue())", '', 'a\nb'),
    'stdout reopened': ("import sys, io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8', newline='\\n')\nprint('héllo')\nsys.stdout.flush()", '', 'héllo'),
    'input overridden by a reader': ("import sys\ndata = sys.stdin.buffer.read().decode().split('\\n')\npos = 0\ndef input():\n    global pos\n    pos += 1\n    return data[pos - 1]\nprint(int(input()) + int(input()))", '4\n5\n', '9'),
    'a class with a run method and a guard': ("class App:\n    def run(self):\n        n, m = map(int, input().split())\n        print(n ** m % (10 ** 9 + 7))\nif __name__ == '__main__':\n    App().run()", '2 10\n', '1024'),
    'asyncio main': ('import asyncio\nasync def main():\n    n = int(await asyncio.to_thread(input))\n    print(n * 2)\nasyncio.run(main())', '21\n', '42'),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unusual_program_passes(name):
    program, tests = FUNCTIONS[name]
    outcome = run_program(program, tests, kind="function", timeout_s=30)
    assert (outcome.status, outcome.passed) == ("passed", len(tests)), outcome


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unusual_script_passes(name):
    program, given, wanted = SCRIPTS[name]
    outcome = run_program(program, [{"input": given, "output": wanted}], kind="stdio", timeout_s=30)
    assert outcome.status == "passed", outcome
