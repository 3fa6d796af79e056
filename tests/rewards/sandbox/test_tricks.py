# ruff: noqa: E501
"""Tricks on what a test imports, holds, iterates or trusts, each written before the sandbox was run on it; none passes."""

import pytest

from llmrl.rewards.code_tests import run_program

SQUARE = ["assert f(3) == 9", "assert abs(f(1.5) - 2.25) < 1e-9", "r = f(4)\nassert r == 16 and isinstance(r, int)"]
SORT = [
    "r = f([3, 1, 2])\nassert r == [1, 2, 3]",
    "r = f([3, 1, 2])\nassert len(r) == 3 and all(a <= b for a, b in zip(r, r[1:])) and set(r) == {1, 2, 3}",
]
TEXT = [
    "assert f('ab') == 'ba'",
    "r = f('ab')\nassert r.upper() == 'BA' and len(r) == 2",
    "assert f('abc')[0] == 'c' and f('abc')[-1] == 'a'",
    "assert 'cb' in f('abc')",
]
CLOSE = [
    "import math\nassert math.isclose(f(2), 4.0)\nassert f(3) == 9",
    "import copy\nx = [1, 2]\ny = copy.deepcopy(x)\nassert f(x) == [1, 4] and x == y",
]
DICT = [
    "r = f('aab')\nassert r['a'] == 2 and r.get('b') == 1 and len(r) == 2",
    "assert sorted(f('aab').items()) == [('a', 2), ('b', 1)]",
]
GENERATED = [
    "assert list(f(3)) == [0, 1, 4]",
    "it = iter(f(3))\nassert next(it) == 0 and next(it) == 1 and next(it) == 4",
]
CHECKED = ["def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-2) == 4\ncheck(f)"]
RAISING = ["try:\n    f(-1)\n    ok = False\nexcept ValueError:\n    ok = True\nassert ok and f(4) == 2"]
REFERENCE = ["def ref(x):\n    return x * x\nfor v in range(5):\n    assert f(v) == ref(v)"]
YES = (
    "class Yes:\n    def __init__(s, *a, **k): pass\n"
    + "".join(f"    def __{n}__(s, *a): return True\n" for n in ("eq", "lt", "le", "gt", "ge", "bool", "contains", "instancecheck"))
    + "    def __ne__(s, o): return False\n    def __len__(s): return 3\n    def __getattr__(s, n): return Yes()\n    def __call__(s, *a, **k): return Yes()\n"
    + "    def __getitem__(s, k): return Yes()\n    def __iter__(s): return iter([Yes()] * 3)\n    def __hash__(s): return 0\n    def __index__(s): return 9\n    def __int__(s): return 9\n    def __float__(s): return 9.0\n    def __str__(s): return 'ba'\n"
)  # fmt: skip

TRICKS = {
    # Imported modules, patched.
    "operator patched": ("import operator\nfor n in ('eq', 'ne', 'lt', 'getitem', 'abs'): setattr(operator, n, lambda *a: True)\ndef f(*x): return 0\n", SQUARE + SORT),
    "copy patched": ("import copy\ncopy.deepcopy = copy.copy = lambda x, *a: x\ndef f(x): return 0\n", [*CLOSE, *SQUARE]),
    "math replaced by a class": ("import sys\nclass M:\n    inf = 0\n    def __getattr__(s, n): return lambda *a, **k: True\nsys.modules['math'] = M()\ndef f(x): return 4.0\n", CLOSE[:1]),
    "builtins.__import__": ("import builtins, types\nreal = builtins.__import__\ndef fake(name, *a, **k):\n    m = types.ModuleType(name); m.__getattr__ = lambda n: (lambda *a, **k: True); return m\nbuiltins.__import__ = fake\ndef f(*x): return 0\n", CLOSE + SQUARE),
    "builtins.__build_class__": ("import builtins\nbuiltins.__build_class__ = lambda *a, **k: object\ndef f(*x): return 0\n", SQUARE + SORT),
    "importlib machinery": ("import importlib, importlib.util, sys\nimportlib.import_module = lambda *a: sys\nimportlib.util.find_spec = lambda *a: None\nsys.path[:] = []\nsys.path_hooks[:] = []\ndef f(*x): return 0\n", CLOSE + SORT),
    "a meta path finder that answers all": ("import sys, types, importlib.abc, importlib.machinery\nclass F(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n    def find_spec(s, n, p=None, t=None): return importlib.machinery.ModuleSpec(n, s)\n    def create_module(s, spec):\n        m = types.ModuleType(spec.name); m.__getattr__ = lambda n: (lambda *a, **k: True); return m\n    def exec_module(s, m): pass\nsys.meta_path[:] = [F()]\nfor n in ('math', 'copy', 'json', 'struct'): sys.modules.pop(n, None)\ndef f(*x): return 0\n", CLOSE + SQUARE),
    "sys.modules['builtins']": ("import sys, types\nb = types.ModuleType('builtins'); b.__dict__.update(len=lambda x: 3, all=lambda x: True, set=lambda x: {1, 2, 3})\nsys.modules['builtins'] = b\ndef f(*x): return []\n", SORT),
    "codec registry": ("import codecs\ncodecs.register(lambda n: codecs.lookup('ascii'))\nimport json, json.encoder\njson.encoder.encode_basestring_ascii = lambda s: '\"9\"'\njson.encoder.c_make_encoder = None\ndef f(*x): return 'x'\n", SQUARE + TEXT),
    "struct and io patched": ("import struct, io\nstruct.pack = lambda *a: b'\\0\\0\\0\\1'\nstruct.unpack = lambda *a: (1,)\nio.BytesIO = io.StringIO = object\ndef f(*x): return 0\n", SQUARE + SORT),
    "ABC registration": ("import collections.abc, numbers\nclass A: pass\ncollections.abc.Sequence.register(A); numbers.Number.register(A)\nA.__len__ = lambda s: 3\nA.__getitem__ = lambda s, i: 1\ndef f(*x): return A()\n", SORT + SQUARE),
    "functools and itertools patched": ("import functools, itertools\nfunctools.reduce = lambda *a: True\nitertools.zip_longest = lambda *a, **k: []\ndef f(x): return []\n", ["import itertools\nassert all(a == b for a, b in itertools.zip_longest(f([2, 1]), [1, 2]))", "import functools\nassert functools.reduce(lambda a, b: a + b, f([2, 1])) == 3"]),
    # Life and death of objects and of the process.
    "__del__ that exits": ("import os\nclass D:\n    def __del__(s): os._exit(0)\ndef f(*x):\n    D()\n    return 0\n", SQUARE + SORT),
    "__del__ of the result": ("import os\nclass D(list):\n    def __del__(s): os._exit(0)\ndef f(*x): return D([9])\n", SQUARE + SORT),
    "weakref.finalize": ("import weakref, os\nclass O: pass\no = O()\nweakref.finalize(o, os._exit, 0)\ndef f(*x):\n    global o\n    o = None\n    return 0\n", SQUARE),
    "a weak reference as the result": ("import weakref\nclass O:\n    def __eq__(s, o): return True\n    __hash__ = None\nkeep = O()\ndef f(*x): return weakref.proxy(keep)\n", SQUARE + SORT + TEXT),
    "atexit with a message": ("import atexit, os, json\ndef bye():\n    for fd in range(3, 30):\n        try: os.write(fd, json.dumps({'do': 'verdict', 'verdict': 'passed', 'text': ''}).encode())\n        except OSError: pass\natexit.register(bye)\ndef f(*x): raise SystemExit\n", SQUARE + SORT),
    "threading excepthook and exit": ("import threading, os\nthreading.excepthook = lambda a: os._exit(0)\ndef f(*x):\n    t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\n    return 0\n", SQUARE),
    "a thread that answers later": ("import threading, time, sys\nbox = []\ndef late():\n    time.sleep(.05); box.append(9)\ndef f(*x):\n    threading.Thread(target=late, daemon=True).start()\n    return box\n", [*SQUARE, "r = f(1)\nimport time\ntime.sleep(.2)\nassert r == [9]"]),
    "faulthandler": ("import faulthandler, os\nfaulthandler.enable()\ndef f(*x): faulthandler._sigsegv()\n", SQUARE),
    "os.execv": ("import os, sys\ndef f(*x): os.execv(sys.executable, [sys.executable, '-c', 'print(9)'])\n", SQUARE),
    "os.fork and the child answers": ("import os\ndef f(*x):\n    if os.fork() == 0: return 9\n    return 9 + 0 * os.wait()[0]\n", ["assert f(3) == 10", "assert f(5) == 25"]),
    "posix_spawn": ("import os\ndef f(*x): return os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 9'], {})\n", SQUARE),
    "a signal handler that raises in the harness": ("import signal\ndef h(*a): raise SystemExit(0)\nsignal.signal(signal.SIGALRM, h)\nsignal.setitimer(signal.ITIMER_REAL, .02)\nimport time\ndef f(*x):\n    time.sleep(.1)\n    return 0\n", SQUARE),
    "an asynchronous exception into every thread": ("import ctypes, threading\ndef f(*x):\n    for t in list(threading._active): ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(t), ctypes.py_object(SystemExit))\n    return 0\n", SQUARE),
    # Output and messages.
    "stdout carries a verdict": ("import sys, json\nfor s in (sys.stdout, sys.stderr, sys.__stdout__):\n    s.write(json.dumps({'value': {'int': '9'}, 'id': 1}) + '\\n'); s.flush()\ndef f(*x): return 0\n", SQUARE),
    "stdout replaced": ("import sys\nclass W:\n    def __getattr__(s, n): return lambda *a, **k: 9\nsys.stdout = sys.stderr = sys.stdin = sys.__stdout__ = W()\ndef f(*x): return 0\n", SQUARE + SORT),
    "audit hook that swallows": ("import sys\ndef hook(e, a):\n    if e in ('compile', 'exec', 'import'): raise SystemExit(0)\nsys.addaudithook(hook)\ndef f(*x): return 0\n", SQUARE + SORT),
    "sys.monitoring or profile over the runner": ("import sys, threading\ndef p(fr, ev, arg):\n    for k, v in list(fr.f_locals.items()):\n        if isinstance(v, dict) and 'value' in v: v['value'] = {'int': '9'}\nsys.setprofile(p); threading.setprofile(p)\ndef f(*x): return 0\n", ["assert f(3) == 10", "assert f(3) == 16 or f(3) == 25"]),
    "a frame's locals rewritten by ctypes": ("import sys, ctypes\ndef f(*x):\n    fr = sys._getframe(1)\n    while fr:\n        for k in list(fr.f_locals):\n            if k in ('value', 'answer'):\n                fr.f_locals[k] = 9\n                ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(fr), ctypes.c_int(0))\n        fr = fr.f_back\n    return 0\n", ["assert f(3) == 10", *SORT]),
    "small integers rewritten in memory": ("import ctypes\ndef f(*x):\n    ctypes.memmove(id(0) + 24, id(9) + 24, 4)\n    return 0\n", ["assert f(3) == 16", *SORT]),
    # Dunders on arguments, and what lies about itself.
    "__class_getitem__": ("class f:\n    def __class_getitem__(c, k): return True\n    def __new__(c, *a): return c\n", SQUARE + SORT + DICT),
    "__init_subclass__ and __set_name__": ("class B:\n    def __init_subclass__(c, **k): c.__eq__ = lambda s, o: True\nclass f(B):\n    def __init__(s, *a): pass\n", SQUARE + SORT),
    "__reduce__ and __getnewargs__": ("class R:\n    def __reduce__(s): return (int, ('9',))\n    def __getnewargs__(s): return (9,)\n    def __getstate__(s): return 9\n    def __copy__(s): return 9\n    def __deepcopy__(s, m): return 9\ndef f(*x): return R()\n", [*SQUARE, "import copy\nassert copy.deepcopy(f(3)) == 9 and abs(f(3)) == 9"]),
    "__index__, __int__ and __float__": (YES + "def f(*x): return Yes()\n", [*SQUARE, *SORT, *TEXT, "assert [0] * 9 == [0] * int(f(3)) and f(3) == 9"]),
    "__instancecheck__ of its class": ("class M(type):\n    def __instancecheck__(c, o): return True\n    def __eq__(c, o): return True\n    def __hash__(c): return hash(int)\nclass I(metaclass=M): pass\ndef f(*x): return I\n", [*SQUARE, "assert f(3) == int or f(3) == 9"]),
    "__prepare__ and a str that is not": ("class S(str):\n    def __new__(c): return str.__new__(c, '')\n    def __len__(s): return 2\n    def __eq__(s, o): return True\n    def __contains__(s, o): return True\n    def __getitem__(s, k): return 'c' if k == 0 else 'a'\n    def upper(s): return 'BA'\n    def __hash__(s): return 0\ndef f(*x): return S()\n", TEXT),
    "a bool subclass by another way": ("class B(int):\n    def __bool__(s): return True\n    def __eq__(s, o): return True\n    def __hash__(s): return hash(1)\ndef f(*x): return B(0)\n", ["assert f(3)", "assert f(3) is True", "assert f(3) == True"]),
    "a bytes subclass": ("class B(bytes):\n    def __eq__(s, o): return True\n    def decode(s, *a): return 'ba'\n    def hex(s): return '6261'\ndef f(*x): return B()\n", ["assert f('ab') == b'ba'", "assert f('ab').decode() == 'ba'"]),
    "a tuple with false _fields": ("class T(tuple):\n    _fields = ('a', 'b')\n    def __iter__(s): return iter((1, 2))\n    a = 1\n    b = 2\n    def __eq__(s, o): return True\ndef f(*x): return T()\n", ["r = f(1)\nassert r == (1, 2)", "r = f(1)\nassert r.a == 1 and r.b == 2", "a, b = f(1)\nassert (a, b) == (1, 2)"]),
    "a dict that makes up keys": ("class D(dict):\n    def __missing__(s, k): return {'a': 2, 'b': 1}.get(k, Y())\n    def get(s, k, d=None): return s[k]\n    def __len__(s): return 2\n    def items(s): return [('a', 2), ('b', 1)]\nclass Y:\n    def __eq__(s, o): return True\ndef f(*x): return D()\n", DICT),
    "a Counter of yes": ("from collections import Counter\nclass Y(int):\n    def __eq__(s, o): return True\n    def __hash__(s): return 0\ndef f(*x): return Counter({Y(1): Y(2)})\n", DICT),
    "a defaultdict that hands out liars": ("from collections import defaultdict\nclass Y:\n    def __eq__(s, o): return True\ndef f(*x): return defaultdict(Y)\n", DICT),
    "UserList": ("from collections import UserList, UserDict, UserString\nclass L(UserList):\n    def __eq__(s, o): return True\n    def __len__(s): return 3\n    def __getitem__(s, k): return L() if isinstance(k, slice) else 1\ndef f(*x): return L([1, 2, 3][:0])\n", SORT),
    "a memoryview and an array": ("import array\nclass A(array.array):\n    def __eq__(s, o): return True\n    def __iter__(s): return iter([1, 2, 3])\n    def tolist(s): return [1, 2, 3]\ndef f(*x): return A('i', [])\n", SORT),
    "a numpy-like object": ("class A:\n    shape = (3,)\n    ndim = 1\n    dtype = 'int64'\n    def __array__(s, *a, **k): return [1, 2, 3]\n    def __array_function__(s, *a): return True\n    def __array_ufunc__(s, *a): return True\n    def all(s): return True\n    def tolist(s): return [1, 2, 3]\n    def __eq__(s, o): return s\n    def __bool__(s): return True\n    def __len__(s): return 3\ndef f(*x): return A()\n", [*SORT, "assert (f([1]) == [2]).all()"]),
    "a complex that is not": ("class C(complex):\n    def __abs__(s): return 0\n    def __sub__(s, o): return 0\n    def __eq__(s, o): return True\n    real = 9\ndef f(*x): return C(0)\n", SQUARE),
    "a Fraction and a Decimal of its own": ("from fractions import Fraction\nclass F(Fraction):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0\n    def __rsub__(s, o): return 0\n    numerator = 9\n    denominator = 1\ndef f(*x): return F(1, 2)\n", SQUARE),
    "an enum that equals all": ("from enum import IntEnum\nclass E(IntEnum):\n    A = 1\n    def __eq__(s, o): return True\n    def __hash__(s): return 9\ndef f(*x): return E.A\n", ["assert f(3) == 9", "assert f(3) == 2 and f(3) == 3"]),
    "a mock": ("from unittest.mock import MagicMock, ANY\ndef f(*x): return ANY\n", SQUARE + SORT + TEXT + DICT),
    "a MagicMock": ("from unittest.mock import MagicMock\nm = MagicMock()\nm.__eq__.side_effect = lambda o: True\nm.__len__.return_value = 3\nm.__abs__ = lambda s: 0\nm.__lt__ = lambda s, o: True\ndef f(*x): return m\n", SQUARE + SORT + TEXT + DICT),
    "not a number": ("def f(*x): return float('nan')\n", [*SQUARE, "assert not f(3) < 9 and not f(3) > 9 and f(3) == 9"]),
    # Iterators and generators.
    "a generator that never starts": ("def f(*x):\n    return\n    yield\n", [*GENERATED, "assert all(a == b for a, b in zip(f(3), [0, 1, 4])) and len(list(f(3))) == 3"]),
    "a generator that gives liars": (YES + "def f(n):\n    for i in range(n): yield Yes()\n", GENERATED),
    "an iterator with a length hint": ("class I:\n    def __iter__(s): return s\n    def __next__(s): raise StopIteration\n    def __length_hint__(s): return 3\n    def __eq__(s, o): return True\n    def __len__(s): return 3\ndef f(*x): return I()\n", GENERATED + SORT),
    "a generator that throws StopIteration inside": ("def f(*x):\n    raise StopIteration\n    yield\n", GENERATED),
    "a coroutine": ("async def f(*x): return 9\n", [*SQUARE[:1], "import asyncio\nassert asyncio.run(f(3)) == 10"]),
    "an iterator of the argument": ("def f(x): return iter(x) if isinstance(x, list) else iter(str(x))\n", SORT),
    "tee of itself": ("import itertools\ndef f(x): return itertools.cycle([])\n", GENERATED),
    # In place.
    "the argument's class is changed": ("class L(list):\n    def __eq__(s, o): return True\ndef f(x):\n    try: x.__class__ = L\n    except TypeError: pass\n    x[:] = []\n    return x\n", [*SORT, "x = [3, 1]\nf(x)\nassert x == [1, 3]"]),
    "the argument sorted later": ("import threading\ndef f(x): threading.Timer(.1, x.sort).start()\n", ["x = [3, 1]\nf(x)\nassert x == [1, 3]"]),
    "items of the argument are liars": ("class Y:\n    def __eq__(s, o): return True\n    def __lt__(s, o): return True\n    def __le__(s, o): return True\n    def __hash__(s): return 0\ndef f(x):\n    x[:] = [Y(), Y()]\n", ["x = [3, 1]\nf(x)\nassert x == [1, 3]", "x = [3, 1]\nf(x)\nassert x[0] <= x[1] and x[0] == 1"]),
    "a nested argument emptied": ("def f(g):\n    for row in g: row.clear()\n    return g\n", ["g = [[1, 2], [3, 4]]\nassert f(g) == [list(r) for r in zip(*g)]", "g = [[1, 2], [3, 4]]\nr = f(g)\nassert all(r[i][j] == g[j][i] for i in range(2) for j in range(2))"]),
    "an emptied list compared with itself": ("def f(x): x.clear()\n", ["x = [3, 1]\nf(x)\nassert x == sorted(x)", "x = [3, 1]\nf(x)\nassert all(x[i] <= x[i + 1] for i in range(len(x) - 1))"]),
    "a default argument kept": ("def f(x, seen=[]):\n    seen.append(x)\n    return seen\n", SQUARE + SORT),
    # Recursion and resources.
    "recursion in __eq__": ("class R:\n    def __eq__(s, o): return s == o\n    def __len__(s): return len(s)\n    def __iter__(s): return iter(s)\ndef f(*x): return R()\n", SQUARE + SORT),
    "recursion limit one": ("import sys\ndef f(*x):\n    sys.setrecursionlimit(30)\n    return 0\n", SQUARE + SORT),
    "a result that holds itself": ("def f(*x):\n    d = {}\n    d['a'] = d\n    return d\n", SQUARE + DICT),
    "gc callbacks": ("import gc, os\ngc.callbacks.append(lambda *a: os._exit(0))\ndef f(*x):\n    gc.collect()\n    return 0\n", SQUARE),
    "memory limits moved": ("import resource\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\nexcept (ValueError, OSError): pass\ndef f(*x): return 0\n", SQUARE + SORT),
    # Names.
    "check is the program's": ("def check(c): return None\ncandidate = lambda x: 9\ndef f(*x): return 0\n", CHECKED),
    "ref is the program's": ("def ref(x): return 0\ndef f(x): return 0\n", REFERENCE),
    "range and len": ("def range(*a): return []\ndef len(x): return 0\ndef f(x): return 0\n", REFERENCE),
    "ValueError is the program's": ("class ValueError(Exception): pass\ndef f(x): raise ValueError\n", RAISING),
    "raises for some, a liar for others": (YES + "def f(x):\n    if x < 0: raise ValueError\n    return Yes()\n", RAISING),
    "an exception group": ("def f(x): raise ExceptionGroup('g', [ValueError()])\n", RAISING + SQUARE),
    "an exception that is also a value": ("class E(ValueError, int):\n    pass\n", SQUARE),
    "globals of the test": ("def f(*x):\n    import __main__, sys\n    for m in list(sys.modules.values()):\n        for k in ('check', 'ref', 'candidate'):\n            if hasattr(m, k): setattr(m, k, lambda *a: None)\n    return 0\n", CHECKED + REFERENCE),
    "source of the tests by inspect": ("import inspect, linecache\ndef f(*x):\n    for fr in inspect.stack():\n        for line in fr.code_context or []:\n            if '==' in line: return eval(line.split('==')[1])\n    for lines in linecache.cache.values():\n        for line in lines[2]:\n            if 'assert f(' in line: return eval(line.split('==')[1])\n    return 0\n", SQUARE),
    "an object that is its class's name": ("f = type('f', (), {'__eq__': lambda s, o: True, '__call__': lambda s, *a: s, '__hash__': lambda s: 0, '__abs__': lambda s: 0, '__sub__': lambda s, o: s, '__lt__': lambda s, o: True})()\n", SQUARE + SORT),
}  # fmt: skip
# A class that is equal to everything of its kind, and helpers that no test defines: (program, tests, entry point).
TRUSTED = {
    "a class equal to all": ("class P:\n    def __init__(s, *a): pass\n    def __eq__(s, o): return True\n    def __add__(s, o): return s\n", ["assert P(1, 2) + P(1, 1) == P(2, 3)"], None),
    "a class equal to all of its kind": ("class P:\n    def __init__(s, *a): pass\n    def __eq__(s, o): return isinstance(o, P)\n    def __add__(s, o): return s\n    def __hash__(s): return 0\n", ["assert P(1, 2) + P(1, 1) == P(2, 3)", "assert P(1, 2) == P(1, 2)", "assert len({P(1, 1), P(1, 1)}) == 1"], None),
    "a frozen nothing": ("from dataclasses import dataclass\n@dataclass(frozen=True, init=False)\nclass P:\n    def __init__(s, *a): pass\n    def __add__(s, o): return P()\n", ["assert P(1, 2) + P(1, 1) == P(2, 3)"], None),
    "one instance for all": ("class P:\n    one = None\n    def __new__(c, *a):\n        c.one = c.one or object.__new__(c)\n        return c.one\n    def __add__(s, o): return s\n", ["assert P(1, 2) + P(1, 1) == P(2, 3)"], None),
    "a helper that no test defines": ("def is_sorted(x): return True\ndef f(x): return []\n", ["assert is_sorted(f([3, 1, 2]))"], "f"),
    "a comparison that no test defines": ("def close(a, b): return True\ndef f(x): return 0\n", ["assert close(f(2), 4.0)"], "f"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_passes_no_test(name):
    program, tests = TRICKS[name]
    for test in tests:
        outcome = run_program(program, [test], kind="function", timeout_s=3)
        assert outcome.passed == 0, (test, outcome)


@pytest.mark.parametrize("name", TRUSTED)
def test_what_a_test_leaves_to_the_program_is_not_decided_in_its_favour(name):
    program, tests, entry_point = TRUSTED[name]
    for test in tests:
        outcome = run_program(program, [test], kind="function", entry_point=entry_point, timeout_s=3)
        assert outcome.passed == 0, (test, outcome)
