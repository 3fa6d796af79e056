# ruff: noqa: E501
"""Ordinary programs of every kind keep their right outcome: isolation and distrust cost them nothing."""

import pytest

from llmrl.rewards.code_tests import run_program

FUNCTION = {
    "class eq": (
        "class P:\n"
        "    def __init__(s,x,y): s.x,s.y=x,y\n"
        "    def __eq__(s,o): return (s.x,s.y)==(o.x,o.y)\n"
        "    def __add__(s,o): return P(s.x+o.x,s.y+o.y)\n"
        "    def __repr__(s): return f'P({s.x}, {s.y})'\n"
        "    def __len__(s): return 2\n"
        "    def __iter__(s): return iter((s.x,s.y))\n"
        "    def __getitem__(s,i): return (s.x,s.y)[i]\n"
        "    def __lt__(s,o): return s.x<o.x\n"
        "    @staticmethod\n"
        "    def zero(): return P(0,0)\n"
        "    @classmethod\n"
        "    def of(c,t): return c(*t)\n"
        "    @property\n"
        "    def norm(s): return abs(s.x)+abs(s.y)\n"
        "    def __contains__(s,v): return v in (s.x,s.y)\n"
        "    def __hash__(s): return hash((s.x,s.y))\n"
        "    def __bool__(s): return True\n"
        "    def __call__(s,k): return s.x*k\n"
        "    def __enter__(s): return s\n"
        "    def __exit__(s,*a): return False\n",
        [
            "assert P(1,2).x == 1",
            "assert P(1,2) == P(1,2)",
            "assert P(1,2) != P(1,3)",
            "assert P(1,2)+P(1,1) == P(2,3)",
            "assert str(P(1,2)) == 'P(1, 2)'",
            "assert len(P(1,2)) == 2",
            "assert list(P(1,2)) == [1,2]",
            "assert P(1,2)[1] == 2",
            "assert P(1,2) < P(2,0)",
            "assert P.zero().x == 0",
            "assert P.of((3,4)).norm == 7",
            "assert 2 in P(1,2)",
            "p = P(1,2)\np.x = 9\nassert p.x == 9",
            "assert isinstance(P(1,2), P)",
            "assert sorted([P(2,0),P(1,0)])[0].x == 1",
            "assert P(4,0)(2) == 8",
            "with P(1,2) as q:\n    assert q.x == 1",
            "assert max(P(1,2)) == 2",
            "a, b = P(5,6)\nassert b == 6",
            "assert bool(P(1,2))",
            "assert repr(P(1,2)) == 'P(1, 2)'",
            "assert f'{P(1,2)}' == 'P(1, 2)'",
            "assert [v*2 for v in P(1,2)] == [2,4]",
        ],
    ),
    "generator": (
        "def g(n):\n    for i in range(n): yield i*i\n",
        [
            "assert list(g(3)) == [0,1,4]",
            "assert sum(g(3)) == 5",
            "assert next(g(3)) == 0",
            "assert [*g(2)] == [0,1]",
            "it = g(3)\nnext(it)\nassert next(it) == 1",
            "assert tuple(g(2)) == (0,1)",
        ],
    ),
    "dataclass": (
        "from dataclasses import dataclass, field\n"
        "from typing import List\n"
        "@dataclass\n"
        "class Q:\n"
        "    a: int\n"
        "    b: List[int] = field(default_factory=list)\n"
        "@dataclass(order=True, frozen=True)\n"
        "class R:\n"
        "    n: int\n",
        [
            "assert Q(1).a == 1",
            "assert Q(1) == Q(1)",
            "assert Q(1, [2]).b == [2]",
            "assert R(1) < R(2)",
            "assert repr(Q(1)) == 'Q(a=1, b=[])'",
        ],
    ),
    "namedtuple/enum": (
        "from collections import namedtuple, Counter, OrderedDict, defaultdict, deque\n"
        "from enum import Enum\n"
        "T=namedtuple('T','a b')\n"
        "class C(Enum):\n"
        "    RED=1\n"
        "def f(): return T(1,2)\n"
        "def c(): return Counter('aab')\n"
        "def o(): return OrderedDict(a=1)\n"
        "def d():\n"
        "    x=defaultdict(int); x['k']+=1; return x\n"
        "def q(): return deque([1,2])\n"
        "def e(): return C.RED\n",
        [
            "assert f() == (1,2)",
            "assert c() == {'a':2,'b':1}",
            "assert o() == {'a':1}",
            "assert d() == {'k':1}",
            "assert list(q()) == [1,2]",
            "assert e().value == 1",
            "assert e().name == 'RED'",
            "assert c()['a'] == 2",
            "assert f().a == 1",
            "assert c().most_common(1) == [('a', 2)]",
        ],
    ),
    "types": (
        "def i(x): return x\n",
        [
            "assert i({1:2}) == {1:2}",
            "assert i({1,2}) == {2,1}",
            "assert i(None) is None",
            "assert i((1,2)) == (1,2)",
            "assert i([1,(2,3)]) == [1,(2,3)]",
            "assert i(b'a') == b'a'",
            "assert i(1j) == 1j",
            "assert i(True) is True",
            "assert i(10**50) == 10**50",
            "assert i({(1,2):3}) == {(1,2):3}",
            "assert i('é\\ud800') == 'é\\ud800'",
            "assert i(float('inf')) == float('inf')",
            "assert i(float('nan')) != i(float('nan'))",
            "assert i(range(3)) == range(3)",
            "assert isinstance(i(3), int)",
            "assert i(frozenset([1])) == {1}",
            "import math\nassert math.isclose(i(0.1)+i(0.2), 0.3)",
            "assert i(-0.0) == 0",
            "assert type(i(2.0)) is float",
        ],
    ),
    "exceptions": (
        "class MyErr(Exception): pass\n"
        "def f(x):\n"
        "    if x<0: raise ValueError('neg')\n"
        "    if x==0: raise MyErr('zero')\n"
        "    return x\n",
        [
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'neg'",
            "try:\n    f(0)\n    ok=False\nexcept Exception:\n    ok=True\nassert ok",
            "try:\n    f(0)\n    ok=False\nexcept MyErr:\n    ok=True\nassert ok",
        ],
    ),
    "closures": (
        "def add(n): return lambda x: x+n\ndef apply(f, x): return f(x)\n",
        [
            "assert add(2)(3) == 5",
            "assert apply(lambda v: v*2, 4) == 8",
            "assert list(map(add(1), [1,2])) == [2,3]",
            "assert apply(str, 4) == '4'",
            "assert apply(len, [1]) == 1",
        ],
    ),
    "mutates arg": (
        "def f(a):\n    a.append(1)\n    return a\ndef g(a): a.sort()\n",
        [
            "x=[]\nassert f(x) == [1]",
            "x=[3,1]\ng(x)\nassert x == [1,3]",
        ],
    ),
    "recursion": (
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return 0 if n==0 else 1+f(n-1)\n",
        [
            "assert f(9000) == 9000",
        ],
    ),
    "main guard": (
        "def f(x): return x\nif __name__ == '__main__':\n    print(f(int(input())))\n",
        [
            "assert f(1) == 1",
        ],
    ),
    "prints": (
        "print('hello')\ndef f(x):\n    print('x'*100000)\n    return x\n",
        [
            "assert f(1) == 1",
        ],
    ),
    "imports": (
        "import math, re, itertools, functools, heapq, bisect, string, random, json, datetime, decimal, fractions, statistics, typing, operator, copy, time\n"
        "from functools import lru_cache\n"
        "@lru_cache(None)\n"
        "def fib(n): return n if n<2 else fib(n-1)+fib(n-2)\n"
        "def fr(): return fractions.Fraction(1,2)\n"
        "def de(): return decimal.Decimal('0.5')\n"
        "def da(): return datetime.date(2020,1,2)\n",
        [
            "assert fib(80) == 23416728348467685",
            "from fractions import Fraction\nassert fr() == Fraction(1,2)",
            "from decimal import Decimal\nassert de() == Decimal('0.5')",
            "import datetime\nassert da() == datetime.date(2020,1,2)",
        ],
    ),
    "async": (
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x\n",
        [
            "import asyncio\nassert asyncio.run(f(3)) == 3",
        ],
    ),
    "linked list": (
        "class Node:\n"
        "    def __init__(s,v,n=None): s.val,s.next=v,n\n"
        "def rev(h):\n"
        "    p=None\n"
        "    while h: h.next,p,h=p,h,h.next\n"
        "    return p\n",
        [
            "h = Node(1, Node(2))\nr = rev(h)\nassert r.val == 2 and r.next.val == 1 and r.next.next is None",
        ],
    ),
    "constant": (
        "MAX = 5\ndef f(): return MAX\n",
        [
            "assert MAX == 5",
            "assert f() == MAX",
        ],
    ),
    "threads ok": (
        "import threading\n"
        "def f():\n"
        "    r=[]\n"
        "    t=threading.Thread(target=lambda: r.append(1)); t.start(); t.join()\n"
        "    return r\n",
        [
            "assert f() == [1]",
        ],
    ),
}
STDIO = {
    "input": ("n=int(input())\nprint(sum(map(int,input().split())))", "2\n1 2\n", "3\n"),
    "stdin.read": ("import sys\nprint(len(sys.stdin.read().split()))", "a b c", "3"),
    "buffer": ("import sys\nprint(sum(map(int,sys.stdin.buffer.read().split())))", "1 2", "3"),
    "readline": ("import sys\ninput=sys.stdin.readline\nprint(int(input())+1)", "4\n", "5"),
    "fd0": ("import os\nprint(len(os.read(0,100)))", "abcd", "4"),
    "open0": ("print(open(0).read().strip())", "hi\n", "hi"),
    "eof": ("try:\n    while True: print(input())\nexcept EOFError: pass", "a\nb", "a\nb"),
    "big": ("print('x'*3000000)", "", "x" * 3000000),
    "exit0": ("import sys\nprint(1)\nsys.exit(0)", "", "1"),
    "exit()": ("print(1)\nexit()", "", "1"),
    "main": ("def main():\n    print(2)\nif __name__=='__main__': main()", "", "2"),
    "buffer write": ("import sys\nsys.stdout.buffer.write(b'ok\\n')", "", "ok"),
    "big in": ("import sys\nprint(len(sys.stdin.read()))", "y" * 2000000, "2000000"),
    "unicode": ("print(input())", "é漢", "é漢"),
    "fileinput": ("import fileinput\nfor l in fileinput.input(): print(l.strip())", "q\nw\n", "q\nw"),
    "quit in function": ("def f():\n    print(7); quit()\nf()", "", "7"),
    "recursion main thread": (
        "import sys,threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64<<20)\ndef f(n): return 0 if n==0 else 1+f(n-1)\ndef main(): print(f(50000))\nt=threading.Thread(target=main); t.start(); t.join()",
        "",
        "50000",
    ),
    "stderr": ("import sys\nsys.stderr.write('noise')\nprint(1)", "", "1"),
    "thread prints later": (
        "import threading,time\ndef w():\n    time.sleep(.2); print('late')\nthreading.Thread(target=w).start()",
        "",
        "late",
    ),
}


@pytest.mark.parametrize("name", FUNCTION)
def test_functions_and_classes_are_tested_as_if_they_were_here(name):
    program, tests = FUNCTION[name]
    outcome = run_program(program, tests, kind="function", timeout_s=20)
    wrong = [(test, verdict) for test, verdict in zip(tests, outcome.per_test) if verdict != "passed"]
    assert (outcome.status, wrong) == ("passed", []), outcome.detail


def test_no_test_of_a_class_passes_without_the_program():
    tests = FUNCTION["class eq"][1] + FUNCTION["generator"][1]
    assert run_program("x = 1\n", tests, kind="function", timeout_s=20).passed == 0


@pytest.mark.parametrize("name", STDIO)
def test_scripts_may_read_and_write_as_they_like(name):
    program, given, wanted = STDIO[name]
    outcome = run_program(program, [{"input": given, "output": wanted}], kind="stdio", timeout_s=20)
    assert outcome.status == "passed", outcome.detail[:300]


def test_an_integer_of_five_thousand_digits_can_be_compared():
    tests = [[[], 10**5000], [[], 10**5000 + 1]]
    outcome = run_program("def f():\n    return 10**5000\n", tests, kind="function", entry_point="f", timeout_s=20)
    assert outcome.per_test == ("passed", "failed")
