# ruff: noqa: E501
"""Programs that do not solve the task and try to pass its tests, by kind of test; none may pass."""

import pytest

from llmrl.rewards.code_tests import run_program

FRAMES = (
    "import sys, gc, json, os\n"
    "def everything():\n"
    "    seen, todo = set(), [sys._getframe()]\n"
    "    while todo and len(seen) < 50000:\n"
    "        o = todo.pop()\n"
    "        if id(o) in seen: continue\n"
    "        seen.add(id(o)); yield o\n"
    "        try: todo.extend(gc.get_referents(o))\n"
    "        except Exception: pass\n"
    "        if hasattr(o, 'f_back'): todo.extend([o.f_back, o.f_locals, o.f_globals])\n"
    "def the(name):\n"
    "    fr = sys._getframe()\n"
    "    while fr:\n"
    "        for d in (fr.f_locals, fr.f_globals):\n"
    "            if name in d: return d[name]\n"
    "            for v in list(d.values()):\n"
    "                if hasattr(v, '__dict__') and name in getattr(v, '__dict__', {}): return vars(v)[name]\n"
    "        fr = fr.f_back\n"
)
YES = (
    "class Yes:\n"
    "    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __hash__(s): return 1\n"
    "    def __lt__(s, o): return True\n    __le__ = __gt__ = __ge__ = __lt__\n"
    "    def __bool__(s): return True\n    def __len__(s): return 3\n    def __contains__(s, o): return True\n"
    "    def __iter__(s): return iter([Yes()] * 3)\n    def __getitem__(s, k): return Yes()\n"
    "    def __add__(s, o): return Yes()\n    __sub__ = __mul__ = __truediv__ = __mod__ = __radd__ = __rsub__ = __rmul__ = __add__\n"
    "    def __abs__(s): return Yes()\n    def __getattr__(s, n): return Yes()\n    def __call__(s, *a, **k): return Yes()\n"
    "    def __float__(s): return 0.0\n    def __int__(s): return 0\n    def __index__(s): return 0\n    def __str__(s): return ''\n"
)
ASSERTS = ["assert f(3) == 9", "assert f(4) == 16"]
CLOSE = ["assert abs(f(1.5) - 2.25) < 1e-9", "import math\nassert math.isclose(f(2.0), 4.0)"]
SORTS = [
    "x = [3, 1, 2]\nassert f(x) == sorted(x)",
    "x = [3, 1, 2]\nr = f(x)\nassert len(r) == len(x)\nassert all(a <= b for a, b in zip(r, list(r)[1:]))\nassert set(r) == {1, 2, 3}",
    "x = [5, 4]\nr = f(x)\ny = sorted(x)\nassert r == y",
    "import collections\nx = [2, 2, 1]\nr = f(x)\nassert collections.Counter(r) == collections.Counter([1, 2, 2])\nassert list(r) == sorted(list(r))",
    "x = [3, 1, 2]\nr = f(x)\ndef right(r):\n    return r == sorted(x)\nassert right(r)",
]
TEXTS = [
    "assert f('ab').startswith('ba')",
    "assert f('ab').upper() == 'BA'",
    "assert f('ab') in ('ba', 'BA')",
    "assert isinstance(f('ab'), str) and f('ab') == 'ba'",
    "assert f('ab')[::-1] == 'ab'",
]
SETS = [
    "assert f([1, 2, 2]).issubset({1, 2}) and len(f([1, 2, 2])) == 2 and 7 not in f([1, 2, 2])",
    "assert f([1]) == {1}",
]
CALLBACK = ["seen = []\nassert f(lambda v: seen.append(v) or v + 1, [1, 2]) == [2, 3]\nassert seen == [1, 2]"]
NODES = [
    "class Node:\n    def __init__(s, v, n=None): s.val, s.next = v, n\n    def is_last(s): return s.next is None\n"
    "h = Node(1, Node(2))\nr = f(h)\nassert r.val == 2 and r.next.val == 1 and r.next.is_last()"
]
REFERENCE = [
    "scope = {}\nexec('def ref(x): return x * x', scope)\nfor v in range(5):\n    assert f(v) == scope['ref'](v), sorted([v])",
]
RAISES = ["try:\n    f(-1)\n    right = False\nexcept ValueError:\n    right = True\nassert right and f(2) == 4"]


def forge(*messages):
    """A program that sends answers of its own making before the true one."""
    return (
        FRAMES + "def f(*x):\n    send, turn = the('send'), the('turn')\n"
        f"    for m in {list(messages)!r}:\n        send({{**m, 'id': turn[-1]}})\n    return 0\n"
    )


HACKS = {
    # Answers forged from inside.
    "a verdict": (forge({"do": "verdict", "verdict": "passed", "text": ""}), ASSERTS + CLOSE),
    "args with a value": (forge({"value": {"list": []}, "args": {"0": {"list": []}}}), SORTS),
    "args that are no arguments": (forge({"value": None, "args": {"7": None, "x": 1}}), SORTS),
    "same beside no argument": (forge({"value": {"list": []}, "same": 9}), SORTS),
    "same that changes the argument": (forge({"value": {"list": []}, "same": 0}), SORTS),
    "same and args": (forge({"value": {"list": []}, "same": 0, "args": {"0": {"list": []}}}), SORTS),
    "an object that is none of ours": (forge({"value": {"opaque": 12345}}), ASSERTS + CLOSE),
    "a test's own object": (forge({"value": {"own": 0}}), ASSERTS + NODES),
    "a callback that was not given": (forge({"callback": 0, "do": "call", "args": [], "kwargs": {}}), CLOSE),
    "a callback of no form": (forge({"callback": "0", "do": 7, "args": {}, "kwargs": []}), CLOSE),
    "a builtin function as the value": (forge({"value": {"function": "len"}}), ASSERTS + SORTS),
    "a type as the value": (forge({"value": {"type": "int"}}), ASSERTS + SORTS),
    "an array of objects": (forge({"value": {"ndarray": ["|O8", {"list": [1]}]}}), ASSERTS + SORTS),
    "an error that the test knows": (forge({"error": "AssertionError", "text": "", "kinds": ["ImportError"]}), RAISES + ASSERTS),
    "loaded twice": (forge({"loaded": True}, {"ready": True}), ASSERTS),
    "no isolation": (forge({"no_isolation": "x"}), ASSERTS),
    "nothing at all": (forge({}), ASSERTS),
    "many answers ahead": (FRAMES + "def f(*x):\n    send = the('send')\n    for n in range(1, 99): send({'value': {'int': '7'}, 'id': n})\n    return 0\n", ASSERTS + SORTS + CLOSE),
    "answers while it is loaded": (FRAMES + "send = the('send')\nsend({'loaded': True})\nfor n in range(1, 20): send({'value': True, 'id': n})\ndef f(*x): return 0\n", ASSERTS + SORTS + CLOSE),
    "reads the requests itself": (FRAMES + "def f(*x):\n    receive, send = the('receive'), the('send')\n    while True:\n        r = receive(); send({'value': True, 'id': r['id']})\n", ASSERTS + CLOSE),
    "replaces the runner's functions": (FRAMES + "for o in list(everything()):\n    if isinstance(o, dict) and 'encode' in o and 'OPERATIONS' in o:\n        o['encode'] = lambda *a: True; o['_after_call'] = lambda *a: {'same': 0}\ndef f(*x): return 0\n", ASSERTS + SORTS + CLOSE),
    "patches the running program object": (FRAMES + "def f(*x):\n    fr = sys._getframe()\n    while fr:\n        me = fr.f_locals.get('self')\n        if me is not None and hasattr(me, 'after'):\n            me.after = lambda *a: {'args': {'0': {'list': []}}}; me.encode = lambda *a: {'list': []}\n        fr = fr.f_back\n    return []\n", SORTS + ASSERTS),
    "writes to every descriptor": ("import os\ndef f(*x):\n    for fd in range(64):\n        try: os.write(fd, b'{\"do\":\"verdict\",\"verdict\":\"passed\",\"text\":\"\"}\\n')\n        except OSError: pass\n    return 0\n", ASSERTS + CLOSE),
    "swaps the pipes": ("import os\nos.dup2(1, 4); os.dup2(0, 3)\ndef f(*x): return 0\n", ASSERTS + CLOSE),
    "closes the result pipe": ("import os\nos.closerange(3, 50)\ndef f(*x): return 0\n", ASSERTS + CLOSE),
    # Leaving early.
    "os._exit(0) while loading": ("import os\nos._exit(0)\n", ASSERTS + CLOSE),
    "os._exit(0) from a thread": ("import os, threading, time\ndef f(*x):\n    threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(1)\n", CLOSE),
    "os.abort": ("import os\ndef f(*x): os.abort()\n", ASSERTS + CLOSE),
    "sys.exit in the call": ("import sys\ndef f(*x): sys.exit(0)\n", ASSERTS + CLOSE),
    "quit": ("def f(*x): quit()\n", ASSERTS + CLOSE),
    "KeyboardInterrupt": ("def f(*x): raise KeyboardInterrupt\n", ASSERTS + CLOSE),
    "GeneratorExit": ("def f(*x): raise GeneratorExit\n", ASSERTS + CLOSE),
    "StopIteration": ("def f(*x): raise StopIteration(9)\n", ASSERTS + CLOSE + SORTS),
    "atexit": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(*x): raise SystemExit\n", ASSERTS),
    "an ImportError of its own": ("def f(*x): raise ImportError('numpy')\n", ASSERTS + CLOSE),
    "an AssertionError of its own": ("def f(*x): raise AssertionError\n", ASSERTS + RAISES),
    "raises for everything": ("def f(*x): raise ValueError\n", RAISES),
    "an exception class that lies": ("class E(ValueError):\n    def __str__(s): return 'passed'\n    def __eq__(s, o): return True\ndef f(*x): raise E\n", ASSERTS + RAISES),
    "kills its process": ("import os, signal\ndef f(*x): os.kill(os.getpid(), signal.SIGKILL)\n", ASSERTS + CLOSE),
    # Objects that lie.
    "an object that says yes": (YES + "def f(*x): return Yes()\n", ASSERTS + CLOSE + SORTS + TEXTS + SETS + REFERENCE),
    "a list of them": (YES + "def f(*x): return [Yes(), Yes(), Yes()]\n", ASSERTS + SORTS + SETS),
    "a dict of them": (YES + "def f(*x): return {Yes(): Yes()}\n", ASSERTS + SETS),
    "f is one": (YES + "f = Yes()\n", ASSERTS + CLOSE + SORTS + TEXTS + SETS + REFERENCE + CALLBACK),
    "a class that is one": ("class M(type):\n    def __eq__(c, o): return True\n    def __hash__(c): return 9\n    def __instancecheck__(c, o): return True\nclass f(metaclass=M):\n    def __init__(s, *a): pass\n    def __eq__(s, o): return True\n", ASSERTS + CLOSE),
    "a str subclass": ("class S(str):\n    def __eq__(s, o): return True\n    def startswith(s, p): return True\n    def upper(s): return S()\n    def __hash__(s): return hash('ba')\n    def __getitem__(s, k): return S()\ndef f(*x): return S()\n", TEXTS),
    "a list subclass": ("class L(list):\n    def __eq__(s, o): return True\n    def __len__(s): return 3\n    def __iter__(s): return iter([1, 2, 3])\n    def __getitem__(s, k): return 1\ndef f(*x): return L()\n", SORTS),
    "a set subclass": ("class S(set):\n    def issubset(s, o): return True\n    def __eq__(s, o): return True\n    def __len__(s): return 2\n    def __contains__(s, v): return v != 7\ndef f(*x): return S()\n", SETS),
    "an int subclass": ("class I(int):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return I(0)\n    __rsub__ = __sub__\n    def __abs__(s): return I(0)\n    def __format__(s, c): return '9'\ndef f(*x): return I(0)\n", ASSERTS + CLOSE),
    "a float subclass": ("class F(float):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0.0\n    def hex(s): return '0x1.2p+1'\n    def __float__(s): return 2.25\ndef f(*x): return F(0)\n", ASSERTS + CLOSE),
    "a dict subclass": ("class D(dict):\n    def items(s): return [(1, 1)]\n    def __eq__(s, o): return True\ndef f(*x): return D()\n", ["assert f(1) == {1: 1}", "assert dict(f(1)) == {1: 1}"]),
    "items that change with each look": ("class L:\n    n = 0\n    def __len__(s): return 3\n    def __iter__(s):\n        L.n += 1\n        return iter([3, 1, 2] if L.n % 2 else [])\ndef f(x): return L()\n", SORTS),
    "items and slices that differ": ("class L:\n    def __len__(s): return 3\n    def __iter__(s): return iter([1, 2, 3])\n    def __getitem__(s, k): return []\ndef f(x): return L()\n", [SORTS[0], SORTS[2], "r = f([3, 1, 2])\nassert len(r) == 3 and r[1:] == [2, 3]"]),
    "a length without items": ("class L:\n    def __len__(s): return 3\n    def __iter__(s): return iter(())\ndef f(x): return L()\n", ["r = f([3, 1, 2])\nassert len(r) == 3 and all(a <= 3 for a in r)"]),
    "a truth that is not its length's": ("class L:\n    def __len__(s): return 0\n    def __bool__(s): return True\n    def __iter__(s): return iter(())\ndef f(x): return L()\n", ["r = f([1, 2])\nassert r and len(r) == 0"]),
    "equal to everything": ("class E:\n    def __eq__(s, o): return True\n    def __hash__(s): return 1\ndef f(x): return E()\n", ["assert f([1, 2]) == f([2, 1])", "assert {f(1), f(2)} == {f(3)}"]),
    "smaller than everything": ("class E:\n    def __lt__(s, o): return True\n    def __gt__(s, o): return True\n    def __le__(s, o): return True\ndef f(x): return E()\n", ["assert f(1) < f(2) < f(3)", "assert sorted([f(2), f(1)])[0] is not None and f(1) > f(0)"]),
    "equal and not equal": ("class E:\n    def __eq__(s, o): return isinstance(o, E)\n    def __ne__(s, o): return True\n    def __hash__(s): return 1\ndef f(x): return E()\n", ["assert f(1) == f(1) and f(1) != f(2)"]),
    "a predicate that is always true": ("class S:\n    def startswith(s, p): return True\n    def issubset(s, o): return True\n    def isdigit(s): return True\ndef f(x): return S()\n", ["assert f('ab').startswith('ba')", "assert f(1).isdigit()", "assert f([1]).issubset({1})"]),
    "an iterator that starts again": ("class L:\n    def __init__(s): s.n = 0\n    def __len__(s): return 3\n    def __iter__(s): return s\n    def __next__(s):\n        s.n += 1\n        if s.n % 4 == 0: raise StopIteration\n        return (3, 1, 2)[s.n % 4 - 1]\ndef f(x): return L()\n", [*SORTS, "r = f([3, 1, 2])\nassert all(a <= b for a, b in zip(r, list(r)[1:]))\nassert set(r) == {1, 2, 3}"]),
    "items that differ from the iteration's": ("class L:\n    def __len__(s): return 3\n    def __iter__(s): return iter([3, 1, 2])\n    def __getitem__(s, k): return 0.0\ndef f(x): return L()\n", ["r = f([3, 1, 2])\nassert all(r[i] <= r[i + 1] for i in range(len(r) - 1)) and set(r) == {1, 2, 3}", "r = f([3, 1, 2])\nassert list(reversed(r)) == [0, 0, 0] and set(r) == {1, 2, 3}"]),
    "a liar from a class that holds the function": (YES + "class Solution:\n    def f(s, *x): return Yes()\n", ["assert Solution().f('ab').startswith('ba')", "r = Solution().f([3, 1, 2])\nassert len(r) == 3 and all(a <= b for a, b in zip(r, list(r)[1:]))", "assert Solution().f(3) == 9"]),
    "claims that the harness failed": ("def f(*x): raise TypeError('StandIn')\n", ASSERTS + CALLBACK),
    "ends the test's own loop": ("def f(*x): raise StopIteration\n", ["assert all(map(lambda v: f(v) == v * v, range(5)))", "assert not [v for v in map(f, [1, 2])]", "assert list(map(f, [3])) == []"]),
    "ends it with an object": ("class E:\n    def __eq__(s, o): raise StopIteration\n    __bool__ = __len__ = __lt__ = lambda s, *o: next(iter(()))\ndef f(*x): return E()\n", ["assert all(map(lambda v: f(v) == v * v, range(5)))", "assert not list(filter(f, [1, 2]))", "assert not list(map(len, [f(1)]))"]),
    "asks without end": ("def f(g, x):\n    while True: g(1)\n", CALLBACK),
    "poses as a list": ("class L:\n    __class__ = list\n    def __eq__(s, o): return True\n    def __len__(s): return 3\ndef f(x): return L()\n", SORTS),
    "a lying numpy": ("import sys, types\nn = types.ModuleType('numpy'); n.ndarray = n.generic = object; sys.modules['numpy'] = n\nclass A:\n    class dtype: kind = 'i'; str = '<i8'\n    def tolist(s): return [1]\n    def item(s): return 9\nA.__module__ = 'numpy'\ndef f(*x): return A()\n", [*ASSERTS[1:], *SORTS]),
    "an endless iterator": ("import itertools\ndef f(*x): return itertools.repeat(1)\n", ["assert [a for a, _ in zip(f(1), range(3))] == [1, 2, 3]", SORTS[0]]),
    # Arguments, and what the tests hand over.
    "empties the argument": ("def f(x):\n    x.clear()\n    return x\n", SORTS),
    "empties the argument and returns another": ("def f(x):\n    x.clear()\n    return []\n", SORTS),
    "makes the argument's items equal": ("def f(x):\n    x[:] = [0] * len(x)\n    return x\n", SORTS),
    "calls the test's function with what it likes": ("def f(g, x): return [g(0) for _ in x]\n", CALLBACK),
    "looks into the test's function": ("def f(g, x):\n    try: return g.__globals__['seen']\n    except AttributeError: return []\n", CALLBACK),
    "changes the test's method": ("def f(h):\n    h.is_last = lambda: True\n    h.val = 2\n    h.next = h\n    return h\n", NODES),
    "changes the test's class": ("def f(h):\n    h.__class__ = dict\n    return h\n", NODES),
    "changes the type of what it was given": ("def f(h):\n    type(h).__eq__ = lambda s, o: True\n    type(h).val = 2\n    return h\n", NODES),
    "reads the test through an object": ("def f(h):\n    h.__init__.__globals__.clear()\n    return h\n", NODES),
    "gives the test its own function back": ("def f(*x): return f\n", ASSERTS + SORTS + CALLBACK),
    # What tests use.
    "exec, sorted and isinstance": ("def exec(s, d): d['ref'] = f\nsorted = lambda x: []\nisinstance = lambda a, b: True\ndef f(x): return 0\n", [*REFERENCE, TEXTS[3]]),
    "a class called math": ("class math:\n    @staticmethod\n    def isclose(*a): return True\ndef f(x): return 0.0\n", CLOSE),
    "builtins patched": ("import builtins\nfor n in ('abs', 'all', 'set', 'sorted', 'len', 'zip', 'isinstance', 'print'):\n    setattr(builtins, n, lambda *a, **k: True)\ndef f(*x): return 0\n", ASSERTS + CLOSE + SORTS),
    "sys.modules patched": ("import sys, types\nfor n in ('math', 'collections', 'json', 'ast', 'unittest', 'copy'):\n    m = types.ModuleType(n); m.__getattr__ = lambda a: (lambda *x, **k: True); sys.modules[n] = m\ndef f(*x): return 0\n", ASSERTS + CLOSE + SORTS),
    "files beside the tests": ("for n in ('math.py', 'collections.py', 'conftest.py', 'sitecustomize.py'):\n    open(n, 'w').write('isclose = lambda *a: True')\ndef f(*x): return 0\n", CLOSE),
    "math.isclose patched": ("import math\nmath.isclose = lambda *a, **k: True\nmath.inf = 0\ndef f(*x): return 0\n", CLOSE),
    "unittest patched": ("import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef f(x): return 0\n", ["import unittest\nunittest.TestCase().assertEqual(f(3), 9)"]),
    "an import hook": ("import sys\nclass H:\n    def find_spec(s, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())\ndef f(*x): return 0\n", ASSERTS + CLOSE),
    "settrace": ("import sys\ndef t(fr, e, a):\n    for k in list(fr.f_locals): pass\n    return t\nsys.settrace(t)\ndef f(*x): return 0\n", ASSERTS + CLOSE),
    "signals": ("import signal\nfor s in (signal.SIGALRM, signal.SIGTERM, signal.SIGPIPE): signal.signal(s, lambda *a: None)\nsignal.alarm(1)\ndef f(*x): return 0\n", ASSERTS),
    "a pickle": ("import pickle\nclass P:\n    def __reduce__(s): return (exec, ('import os; os._exit(0)',))\ndef f(*x): return pickle.dumps(P())\n", ASSERTS),
    "searches memory for what is expected": (FRAMES + "def f(x):\n    for o in everything():\n        if isinstance(o, str) and 'assert f' in o: return eval(o.split('==')[1].split('\\n')[0])\n    return 0\n", ASSERTS),
    "a name with a dunder": ("__name__ = 'tests'\n__builtins__ = {}\ndef f(*x): return 0\n", ASSERTS + CLOSE),
}  # fmt: skip
STDIO = {
    "prints nothing": "pass",
    "exits at once": "import os\nos._exit(0)",
    "prints every number": "print(*range(100))",
    "prints what it read": "print(input())",
    "forges the ending": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"ended\": true}\\n')\n    except OSError: pass",
    "patches print": "import builtins\nbuiltins.print = lambda *a: None\nprint(3)",
    "looks for the output": "import os\nfor d, _, n in os.walk('/tmp'):\n    for x in n: print(open(os.path.join(d, x)).read())",
    "other digits": "print('\\u0663')",
    "an equal number with an underscore": "print('0_3')",
    "prints to stderr": "import sys\nsys.stderr.write('3')",
    "prints after the fact": "import atexit\natexit.register(print, 4)\nprint(3)",
    "carries on in a thread": "import threading, time\nprint(3)\nthreading.Thread(target=lambda: (time.sleep(.2), print(4))).start()",
}


@pytest.mark.parametrize("name", HACKS)
def test_a_program_that_cheats_passes_no_test(name):
    program, tests = HACKS[name]
    while tests:  # again for those that could not run because the one before ended the program
        outcome = run_program(program, tests, kind="function", timeout_s=3)
        assert outcome.passed == 0, outcome
        assert outcome.status in ("failed", "runtime_error", "timeout"), outcome
        tests = [test for test, status in zip(tests, outcome.per_test) if status == "not_run"]


@pytest.mark.parametrize("name", STDIO)
@pytest.mark.parametrize("comparison", ["strict", "apps"])
def test_a_script_that_cheats_passes_no_test(name, comparison):
    tests = [{"input": "1 2\n", "output": "3\n"}]
    outcome = run_program(STDIO[name], tests, kind="stdio", timeout_s=3, comparison=comparison)
    assert outcome.status in ("failed", "runtime_error", "timeout"), outcome
