# ruff: noqa: E501
"""Right programs under tests of many kinds pass; what cannot cross to the program is the harness's failure, not its own."""

import pytest

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.sandbox import Limits

NODE = "class Node:\n    def __init__(s, val, next=None): s.val, s.next = val, next\n"
TREE = "class Tree:\n    def __init__(s, val, left=None, right=None): s.val, s.left, s.right = val, left, right\n"
LINK = (
    NODE
    + "def link(*v):\n    return Node(v[0], link(*v[1:])) if v else None\ndef values(n):\n    return [n.val] + values(n.next) if n else []\n"
)
# name -> (program, tests)
PASSES = {
    # Objects of the test's own classes.
    "reverse a list": ("def rev(h):\n    p = None\n    while h: h.next, p, h = p, h, h.next\n    return p\n", [LINK + "assert values(rev(link(1, 2, 3))) == [3, 2, 1]", LINK + "assert rev(None) is None"]),
    "length of a list": ("def count(h):\n    return 1 + count(h.next) if h else 0\n", [LINK + "assert count(link(1, 2, 3)) == 3 and count(None) == 0"]),
    "merge lists": ("def merge(a, b):\n    if not a or not b: return a or b\n    if a.val > b.val: a, b = b, a\n    a.next = merge(a.next, b)\n    return a\n", [LINK + "assert values(merge(link(1, 3), link(2, 4))) == [1, 2, 3, 4]"]),
    "a cycle": ("def cyclic(h):\n    slow = fast = h\n    while fast and fast.next:\n        slow, fast = slow.next, fast.next.next\n        if slow is fast: return True\n    return False\n", [LINK + "h = link(1, 2, 3)\nh.next.next.next = h.next\nassert cyclic(h) and not cyclic(link(1, 2))"]),
    "a new node beside the test's": ("class Node:\n    def __init__(s, val, next=None): s.val, s.next = val, next\ndef push(h, v): return Node(v, h)\n", [LINK + "r = push(link(2), 1)\nassert (r.val, r.next.val) == (1, 2)"]),
    "invert a tree": ("def invert(t):\n    if t: t.left, t.right = invert(t.right), invert(t.left)\n    return t\n", [TREE + "t = invert(Tree(1, Tree(2), Tree(3, Tree(4))))\nassert (t.left.val, t.right.val, t.left.right.val) == (3, 2, 4)"]),
    "depth of a tree": ("def depth(t): return 1 + max(depth(t.left), depth(t.right)) if t else 0\n", [TREE + "assert depth(Tree(1, Tree(2, Tree(3)))) == 3"]),
    "levels of a tree": ("from collections import deque\ndef levels(t):\n    out, q = [], deque([t] if t else [])\n    while q:\n        out.append([n.val for n in q])\n        q = deque(c for n in q for c in (n.left, n.right) if c)\n    return out\n", [TREE + "assert levels(Tree(1, Tree(2), Tree(3))) == [[1], [2, 3]] and levels(None) == []"]),
    "nodes in a set": ("def distinct(ns): return len(set(ns))\n", [NODE + "a, b = Node(1), Node(1)\nassert distinct([a, b, a]) == 2"]),
    "sorted by an attribute": ("def order(ns): return sorted(ns, key=lambda n: n.val)\n", [NODE + "a, b = Node(2), Node(1)\nassert order([a, b]) == [b, a] and order([a])[0] is a"]),
    "a method of the test's object": ("def total(shapes): return sum(s.area() for s in shapes)\n", ["class Square:\n    def __init__(s, a): s.a = a\n    def area(s): return s.a ** 2\nassert total([Square(2), Square(3)]) == 13"]),
    "operators of the test's class": ("def add(a, b): return a + b\ndef same(a, b): return a == b\n", ["class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n    def __eq__(s, o): return s.x == o.x\nassert add(V(1), V(2)).x == 3 and same(V(1), V(1)) and not same(V(1), V(2))"]),
    "a container of the test's": ("def last(c): return c[len(c) - 1]\ndef total(c): return sum(c)\n", ["class C:\n    def __len__(s): return 3\n    def __getitem__(s, i):\n        if i > 2: raise IndexError(i)\n        return i * 10\nassert last(C()) == 20 and total(C()) == 30"]),
    "a dataclass of the test's": ("def older(p): return p.name, p.age + 1\n", ["from dataclasses import dataclass\n@dataclass\nclass P:\n    name: str\n    age: int\nassert older(P('a', 1)) == ('a', 2)"]),
    "a copy of the test's object": ("import copy\ndef f(n): return copy.deepcopy(n)\n", [NODE + "n = Node(1, Node(2))\nc = f(n)\nassert c is not n and c.next.val == 2 and c.next is not n.next"]),
    "an attribute that is missing": ("def has(n): return hasattr(n, 'val'), hasattr(n, 'left')\n", [NODE + "assert has(Node(1)) == (True, False)"]),
    # Iterators and files.
    "an iterator": ("def total(it): return sum(it)\n", ["assert total(iter([1, 2, 3])) == 6", "assert total(i * i for i in range(4)) == 14", "assert total(map(int, '12')) == 3", "assert total({1: 2, 3: 4}.values()) == 6", "assert total(range(4)) == 6"]),
    "an endless iterator": ("from itertools import islice\ndef take(it, n): return list(islice(it, n))\n", ["import itertools\nassert take(itertools.count(5), 3) == [5, 6, 7]"]),
    "an iterator that goes on after the call": ("def head(it): return next(it)\n", ["it = iter([1, 2, 3])\nassert head(it) == 1 and head(it) == 2 and next(it) == 3"]),
    "keys of a dict": ("def names(keys): return sorted(keys), len(keys), 'a' in keys\n", ["assert names({'b': 1, 'a': 2}.keys()) == (['a', 'b'], 2, True)"]),
    "a text file in memory": ("def words(f): return [w for line in f.read().splitlines() for w in line.split()]\ndef put(f): f.write('hi')\n", ["import io\nassert words(io.StringIO('a b\\nc')) == ['a', 'b', 'c']", "import io\nf = io.StringIO()\nput(f)\nassert f.getvalue() == 'hi'"]),
    "lines of a file": ("def count(f): return sum(1 for line in f)\n", ["import io\nassert count(io.StringIO('a\\nb\\n')) == 2"]),
    "a random generator": ("def roll(rng): return rng.randint(1, 6)\n", ["import random\nassert roll(random.Random(1)) == random.Random(1).randint(1, 6)"]),
    "a named space": ("def full(p): return p.first + p.last\n", ["from types import SimpleNamespace as S\nassert full(S(first='a', last='b')) == 'ab'"]),
    # Arguments changed in place.
    "sorted in place": ("def f(a): a.sort()\n", ["x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]", "x = [2, 1]\nassert f(x) is None and x == [1, 2]"]),
    "sorted in place and returned": ("def f(a):\n    a.sort()\n    return a\n", ["x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]", "x = [3, 1, 2]\nr = f(x)\nassert x == [1, 2, 3]", "x = [3, 1, 2]\nassert f(x) is x", "x = [3, 1, 2]\nassert f(x) == [1, 2, 3]", "x = [3, 1, 2]\nassert f(x) == sorted(x)", "x = [3, 1, 2]\ny = sorted(x)\nassert f(x) == y", "x = [3, 1]\nr = f(x)\nassert r is x\nassert x == [1, 3]"]),
    "a dict changed and returned": ("def f(d):\n    d['n'] = d.get('n', 0) + 1\n    return d\n", ["d = {}\nf(d)\nf(d)\nassert d == {'n': 2}"]),
    "a set changed and returned": ("def f(s, v):\n    s.add(v)\n    return s\n", ["s = {1}\nf(s, 2)\nassert s == {1, 2}"]),
    "a grid changed in place": ("def f(g):\n    for row in g: row.reverse()\n", ["g = [[1, 2], [3, 4]]\nf(g)\nassert g == [[2, 1], [4, 3]]"]),
    "an argument left alone": ("def f(a): return sorted(a)\n", ["x = [2, 1]\nassert f(x) == [1, 2] and x == [2, 1]", "x = [2, 1]\nr = f(x)\nassert r is not x and x == [2, 1]"]),
    # Names.
    "a helper named like a builtin": ("def max(a): return sorted(a)[-1]\ndef sum(a):\n    t = 0\n    for v in a: t += v\n    return t\ndef f(a): return max(a) + sum(a)\n", ["assert f([1, 2]) == 5", "assert f([1, 2]) == max([1, 2]) + sum([1, 2])", "assert abs(f([1.5]) - 3.0) < 1e-9"]),
    "a function named like a builtin": ("def sum(a, b): return a + b\n", ["assert sum(1, 2) == 3", "assert sum(0, 0) == 0"]),
    "a function named like a module": ("def queue(n): return list(range(n))\n", ["assert queue(2) == [0, 1]", "for n in range(3):\n    assert len(queue(n)) == n"]),
    "a variable named like a builtin": ("list = [1, 2]\ndef f(): return list\n", ["assert f() == [1, 2]"]),
    "a helper called check": ("def check(x): return x > 0\ndef f(x): return check(x)\n", ["def check(candidate):\n    assert candidate(1) is True and candidate(-1) is False\ncheck(f)"]),
    "the candidate as an argument": ("def f(x): return x + 1\n", ["def check(f):\n    for i in range(3):\n        assert f(i) == i + 1\ncheck(f)"]),
    "constants of the program": ("LIMIT = 3\ndef f(): return LIMIT\n", ["assert f() == LIMIT == 3"]),
    "a lambda": ("f = lambda x: x * 2\n", ["assert f(2) == 4", "assert [f(i) for i in range(2)] == [0, 2]"]),
    "a partial": ("from functools import partial\nf = partial(pow, 2)\n", ["assert f(3) == 8"]),
    "a cached function": ("from functools import cache\n@cache\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)\n", ["assert f(50) == 12586269025"]),
    "keyword arguments": ("def f(a, *rest, b=2, **more): return a, rest, b, more\n", ["assert f(1, 3, b=4, c=5) == (1, (3,), 4, {'c': 5})"]),
    # The program's own objects.
    "a stack": ("class Stack:\n    def __init__(s): s.items = []\n    def push(s, v): s.items.append(v)\n    def pop(s): return s.items.pop()\n    def __len__(s): return len(s.items)\n    def is_empty(s): return not s.items\n", ["s = Stack()\nassert s.is_empty() and len(s) == 0\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.pop() == 2 and len(s) == 1 and not s.is_empty()"]),
    "an LRU cache": ("from collections import OrderedDict\nclass LRU:\n    def __init__(s, n): s.n, s.d = n, OrderedDict()\n    def get(s, k):\n        if k not in s.d: return -1\n        s.d.move_to_end(k)\n        return s.d[k]\n    def put(s, k, v):\n        s.d[k] = v\n        s.d.move_to_end(k)\n        if len(s.d) > s.n: s.d.popitem(last=False)\n", ["c = LRU(2)\nc.put(1, 1)\nc.put(2, 2)\nassert c.get(1) == 1\nc.put(3, 3)\nassert c.get(2) == -1 and c.get(3) == 3"]),
    "a trie": ("class Trie:\n    def __init__(s): s.words = set()\n    def insert(s, w): s.words.add(w)\n    def startswith(s, p): return any(w.startswith(p) for w in s.words)\n", ["t = Trie()\nt.insert('apple')\nassert t.startswith('app') and not t.startswith('b')"]),
    "a fraction": ("from math import gcd\nclass Frac:\n    def __init__(s, a, b): g = gcd(a, b); s.a, s.b = a // g, b // g\n    def __add__(s, o): return Frac(s.a * o.b + o.a * s.b, s.b * o.b)\n    def __eq__(s, o): return (s.a, s.b) == (o.a, o.b)\n    def __lt__(s, o): return s.a * o.b < o.a * s.b\n    def __str__(s): return f'{s.a}/{s.b}'\n", ["assert Frac(1, 2) + Frac(1, 3) == Frac(5, 6) and str(Frac(2, 4)) == '1/2' and Frac(1, 3) < Frac(1, 2) and Frac(2, 4) == Frac(1, 2)"]),
    "a counter made by a function": ("def make():\n    n = 0\n    def step():\n        nonlocal n\n        n += 1\n        return n\n    return step\n", ["step = make()\nassert (step(), step()) == (1, 2)"]),
    "an object made by a function": ("class Bag:\n    def __init__(s): s.v = []\n    def add(s, x):\n        s.v.append(x)\n        return s\n    def __len__(s): return len(s.v)\n    def __iter__(s): return iter(s.v)\ndef bag(): return Bag()\n", ["b = bag()\nassert not b and len(b) == 0\nb.add(1).add(2)\nassert b and len(b) == 2 and list(b) == [1, 2] and sum(b) == 3"]),
    "a generator twice": ("def g(n):\n    yield from range(n)\n", ["assert list(g(3)) == list(g(3)) == [0, 1, 2]", "x = g(3)\nassert next(x) == 0 and list(x) == [1, 2] and list(x) == []", "for a, b in zip(g(3), [0, 1, 2]):\n    assert a == b"]),
    "an endless generator": ("def g():\n    n = 0\n    while True:\n        yield n\n        n += 2\n", ["it = g()\nassert [next(it) for _ in range(3)] == [0, 2, 4]", "import itertools\nassert list(itertools.islice(g(), 2)) == [0, 2]"]),
    "an enum": ("from enum import Enum, IntEnum\nclass Color(Enum):\n    RED = 1\n    def next(s): return Color.RED\nclass N(IntEnum):\n    A = 3\ndef f(): return N.A\n", ["assert Color.RED.value == 1 and Color.RED.next() == Color.RED and Color['RED'].name == 'RED'", "assert f() == 3"]),
    "an object equal to itself": ("class P:\n    pass\ndef f(): return P()\n", ["p = f()\nassert p == p and p is p and p != f()"]),
    "a context manager": ("from contextlib import contextmanager\n@contextmanager\ndef on(log):\n    log.append('in')\n    yield log\n", ["with on([]) as log:\n    assert log == ['in']"]),
    "an exception with a value": ("class Bad(Exception):\n    def __init__(s, code): super().__init__(f'code {code}')\ndef f(): raise Bad(3)\n", ["try:\n    f()\n    assert False, 'no error'\nexcept Bad as error:\n    assert '3' in str(error)"]),
    "a class of its own as key": ("class K:\n    def __init__(s, v): s.v = v\n    def __eq__(s, o): return s.v == o.v\n    def __hash__(s): return hash(s.v)\n", ["assert len({K(1), K(1), K(2)}) == 2 and {K(1): 'a'}[K(1)] == 'a'"]),
    # Functions that the test hands over.
    "compose": ("def compose(*fs):\n    def run(x):\n        for g in reversed(fs): x = g(x)\n        return x\n    return run\n", ["assert compose(lambda x: x + 1, lambda x: x * 2)(3) == 7", "assert compose(str, abs)(-3) == '3'"]),
    "a decorator": ("import functools\ndef twice(g):\n    @functools.wraps(g)\n    def run(*a): return g(*a) * 2\n    return run\n", ["@twice\ndef h(x): return x + 1\nassert h(1) == 4"]),
    "a key function": ("def top(xs, key): return max(xs, key=key)\n", ["assert top(['a', 'bbb', 'cc'], len) == 'bbb'", "assert top([1, -5], lambda v: v * v) == -5"]),
    "a function that raises": ("def safe(g):\n    try: return g()\n    except ZeroDivisionError: return None\n", ["assert safe(lambda: 1 // 0) is None and safe(lambda: 2) == 2"]),
    "calls are counted": ("def memo(g):\n    known = {}\n    def run(x):\n        if x not in known: known[x] = g(x)\n        return known[x]\n    return run\n", ["calls = []\nh = memo(lambda x: calls.append(x) or x * 2)\nassert h(2) == h(2) == 4 and calls == [2]"]),
    # Values.
    "floats": ("def f(x): return x / 3\n", ["assert abs(f(1) - 0.3333333) < 1e-6", "import math\nassert math.isclose(f(1), 1 / 3)", "assert round(f(2), 2) == 0.67", "assert f(float('inf')) == float('inf')"]),
    "nested values": ("def f(n): return {'a': [(i, {i}) for i in range(n)], 'b': None}\n", ["assert f(2) == {'a': [(0, {0}), (1, {1})], 'b': None}", "r = f(2)\nr['a'].append(1)\nassert len(r['a']) == 3"]),
    "a large list": ("def f(n): return list(range(n))\n", ["assert f(100000) == list(range(100000))"]),
    "truth values": ("def f(x): return x > 1\n", ["assert f(2)", "assert not f(1)", "assert f(2) is True", "assert f(2) == 1"]),
    "bytes and text": ("def f(s): return s.encode(), s[::-1]\n", ["assert f('é') == ('é'.encode(), 'é')"]),
    "well-known names without import": ("def f(s):\n    from collections import Counter\n    return Counter(s)\n", ["assert f('aab') == Counter('aba')", "assert isclose(f('aa')['a'], 2)"]),
}  # fmt: skip
HARNESS = {
    "a package that is not there": ("def f(x): return x\n", "import nothing_like_this\nassert f(1) == 1"),
    "a module without that name": ("def f(x): return x\n", "from math import nothing_like_this\nassert f(1) == 1"),
    "numpy where it is not allowed": ("def f(x): return x\n", "import numpy as np\nassert np.all(f(1) == 1)"),
    "a frame": ("def f(x): return x.f_lineno\n", "import sys\nassert f(sys._getframe()) > 0"),
    "a module as an argument": ("def f(m): return m.sqrt(4)\n", "import math\nassert f(math) == 2"),
    "a pickle of a test's object": ("import pickle\ndef f(n): return pickle.dumps(n)\n", NODE + "assert f(Node(1))"),
    "arithmetic with a generator": ("def f(g): return g + g\n", "assert f(i for i in [1])"),
}
NUMPY = Limits(packages=("numpy",))


@pytest.mark.parametrize("name", PASSES)
def test_a_right_program_passes(name):
    program, tests = PASSES[name]
    outcome = run_program(program, tests, kind="function", timeout_s=30)
    wrong = [(test, verdict) for test, verdict in zip(tests, outcome.per_test) if verdict != "passed"]
    assert (outcome.status, wrong) == ("passed", []), outcome.detail


@pytest.mark.parametrize("name", HARNESS)
def test_what_cannot_cross_to_the_program_is_the_harness_s_failure(name):
    program, test = HARNESS[name]
    assert run_program(program, [test], kind="function", timeout_s=20).status == "harness_error"


def test_wrong_programs_fail_tests_that_hand_over_objects():
    wrong = "def rev(h): return h\ndef count(h): return 0\ndef merge(a, b): return a\n"
    for name in ("reverse a list", "length of a list", "merge lists"):
        assert run_program(wrong, PASSES[name][1][:1], kind="function", timeout_s=20).status == "failed"


def test_a_program_s_own_import_error_is_its_own_failure():
    assert run_program("import nothing_like_this\n", ["assert f(1)"], kind="function").status == "runtime_error"
    program = "def f(x):\n    import nothing_like_this\n"
    assert run_program(program, ["assert f(1) > 0"], kind="function").status == "runtime_error"


def test_numpy_can_be_allowed_for_programs_and_tests():
    program = (
        "import numpy as np\ndef f(x): return np.array(x) * 2\ndef total(x): return np.sum(x)\n"
        "def names(): return np.array(['a'])\ndef any_(x): return np.any(np.array(x) > 1)\n"
    )
    tests = [
        "import numpy as np\nassert np.allclose(f([1, 2]), [2, 4])",
        "import numpy as np\nassert np.array_equal(f(np.array([1, 2])), np.array([2, 4])) and f([[1]]).shape == (1, 1)",
        "assert total([1, 2]) == 3 and isinstance(total([1, 2]), int)",
        "assert total([0.5, 1]) == 1.5",
        "assert total([1, 2]) == 3",
        "assert names().tolist() == ['a']",
        "assert any_([1, 2]) and not any_([0])",
        "assert np.isclose(total([0.1, 0.2]), 0.3)",
    ]
    outcome = run_program(program, tests, kind="function", timeout_s=60, limits=NUMPY)
    assert outcome.status == "passed", outcome
    absent = run_program(program, tests, kind="function", limits=Limits(packages=("nothing_like_this",)))
    assert absent.status == "harness_error"
    with pytest.raises(ValueError, match="list of package names"):
        Limits(packages="numpy")


@pytest.mark.parametrize(
    "program",
    [
        "print(open('/dev/stdin').read())",
        "from pathlib import Path\nprint(Path('/dev/stdin').read_text())",
        "with open('/dev/stdin') as f:\n    for line in f: print(line, end='')",
        "import sys\nsys.stdin = open('/dev/stdin')\nprint(input())",
        "import numpy as np\nprint(*np.array(input().split()))",
        "import io\nprint(io.open('/dev/stdin', encoding='utf-8').readline())",
    ],
)
def test_scripts_may_read_stdin_by_its_name(program):
    tests = [{"input": "a b\n", "output": "a b\n"}]
    assert run_program(program, tests, kind="stdio", timeout_s=30, limits=NUMPY).status == "passed"
