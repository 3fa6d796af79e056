# ruff: noqa: E501
"""Cheating programs of other kinds than before, each against every form in which benchmarks give their tests; none passes."""

import pytest

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.sandbox import Limits

LIAR = (
    "class L:\n"
    "    def __eq__(s, o): return True\n"
    "    def __ne__(s, o): return False\n"
    "    def __hash__(s): return 9\n"
    "    def __lt__(s, o): return True\n"
    "    __le__ = __gt__ = __ge__ = __lt__\n"
    "    def __abs__(s): return 0\n"
    "    def __sub__(s, o): return 0\n"
    "    __rsub__ = __add__ = __radd__ = __mul__ = __rmul__ = __truediv__ = __sub__\n"
    "    def __len__(s): return 3\n"
    "    def __iter__(s): return iter([7, 7, 7])\n"
    "    def __getitem__(s, k): return 7\n"
    "    def __float__(s): return 0.0\n"
    "    def __array__(s, *a, **k): return [9]\n"
)
FRAMES = (
    "import sys, gc\n"
    "def frames():\n"
    "    fr = sys._getframe()\n"
    "    while fr:\n"
    "        yield fr\n"
    "        fr = fr.f_back\n"
    "def find(name):\n"
    "    for fr in frames():\n"
    "        for d in (fr.f_locals, fr.f_globals):\n"
    "            if name in d: return d[name]\n"
    "            for v in list(d.values()):\n"
    "                if name in getattr(v, '__dict__', {}): return vars(v)[name]\n"
)
HACKS = {
    'metaclass __call__': LIAR + 'class M(type):\n    def __call__(c, *a): return L()\nclass f(metaclass=M): pass\n',
    'module __getattr__': LIAR + 'def __getattr__(n): return lambda *x: L()\n',
    'another module in sys.modules': LIAR + "import sys, types\nclass M(types.ModuleType):\n    def __getattr__(s, n): return lambda *x: L()\nsys.modules['solution'] = sys.modules['__main__'] = M('solution')\ndef f(*x): return 0\n",
    'a descriptor': LIAR + 'class D:\n    def __get__(s, o, t=None): return lambda *x: L()\n    def __set_name__(s, o, n): s.n = n\nclass H:\n    f = D()\nf = H.f\n',
    '__getattribute__ on everything': LIAR + "class A(L):\n    def __getattribute__(s, n): return (lambda *a, **k: True) if not n.startswith('__') else object.__getattribute__(s, n)\ndef f(*x): return A()\n",
    'operator mutated': "import operator\nfor n in ('eq', 'lt', 'sub', 'abs', 'getitem', 'le', 'ne'): setattr(operator, n, lambda *a: True)\nimport _operator\nfor n in ('eq', 'lt', 'sub'): setattr(_operator, n, lambda *a: True)\ndef f(*x): return 0\n",
    'pickle and copyreg mutated': "import pickle, copyreg, copy\npickle.dumps = lambda *a, **k: b'I9\\n.'\npickle.loads = lambda *a, **k: 9\ncopy.deepcopy = lambda v, *a: 9\nclass R:\n    def __eq__(s, o): return True\ncopyreg.pickle(R, lambda r: (int, (9,)))\ndef f(*x): return R()\n",
    'unittest mutated': "import unittest, unittest.case\nfor n in dir(unittest.TestCase):\n    if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a, **k: None)\nunittest.TestCase.failureException = Warning\ndef f(*x): return 0\n",
    "json's encoder object mutated": 'import json, json.encoder\nclass E(json.JSONEncoder):\n    def encode(s, o): return \'{"value": true, "id": %d, "nonce": "%s"}\' % (o.get(\'id\', 1), o.get(\'nonce\', \'\'))\njson._default_encoder = E()\njson.encoder.JSONEncoder.encode = E.encode\ndef f(*x): return 0\n',
    "json's decoder object mutated": "import json\nd = json._default_decoder\njson._default_decoder.decode = lambda s, _d=json.JSONDecoder(): {**_d.decode(s), 'do': 'value'}\ndef f(*x): return 0\n",
    'posix.write mutated': "import posix, os\nposix.write = os.write = lambda fd, d: len(d)\nposix.read = os.read = lambda fd, n: b''\ndef f(*x): return 0\n",
    'the result pipe doubled': 'import os\ndef f(*x):\n    for fd in range(3, 12):\n        for to in range(3, 12):\n            if fd != to:\n                try: os.fstat(fd); os.dup2(fd, to)\n                except OSError: pass\n    return 0\n',
    'an own request pipe': "import os, json\nr, w = os.pipe()\nos.write(w, b''.join(json.dumps({'do': 'call', 'name': 'f', 'args': [{'int': '3'}], 'kwargs': {}, 'id': n}).encode() + b'\\n' for n in range(1, 20)))\nfor fd in range(3, 9):\n    try: os.fstat(fd)\n    except OSError: continue\n    if fd not in (r, w): os.dup2(r, fd); break\ndef f(*x): return 7\n",
    'a thread that reads the requests': 'import threading, os\ndef steal():\n    for fd in range(3, 9):\n        threading.Thread(target=lambda fd=fd: os.read(fd, 1 << 16), daemon=True).start()\nsteal()\ndef f(*x): return 0\n',
    'a thread that answers ahead': FRAMES + "import threading\ndef f(*x):\n    send, turn = find('send'), find('turn')\n    def go():\n        for n in range(1, 60):\n            send({'value': {'int': '7'}, 'id': n}); send({'value': {'int': '10'}, 'id': n})\n    t = threading.Thread(target=go); t.start(); t.join()\n    return 0\n",
    'a signal handler that rewrites locals': "import signal, sys\ndef h(n, fr):\n    while fr:\n        for k in list(fr.f_locals):\n            if k in ('answer', 'value', 'verdict'): fr.f_locals[k] = {'value': True}\n        fr = fr.f_back\nsignal.signal(signal.SIGALRM, h)\nsignal.setitimer(signal.ITIMER_REAL, .001, .001)\nimport time\ndef f(*x):\n    time.sleep(.02)\n    return 0\n",
    'gc finds the running program': "import gc\ndef f(*x):\n    for o in gc.get_objects():\n        d = getattr(o, '__dict__', None)\n        if isinstance(d, dict) and 'kept' in d and 'operations' in d:\n            d['operations'].update({k: (lambda *a, **k: True) for k in d['operations']})\n            d['encode'] = lambda *a: True\n            d['complain'] = lambda *a: {'value': True}\n    return 0\n",
    'a trace of the frames that run': "import sys\ndef tr(fr, ev, arg):\n    for k in list(fr.f_locals):\n        if k == 'answer': fr.f_locals[k] = {'value': {'int': '7'}}\n    return tr\nfr = sys._getframe()\nwhile fr:\n    fr.f_trace = tr\n    fr = fr.f_back\nsys.settrace(tr)\ndef f(*x): return 0\n",
    'an import hook': LIAR + "import sys, types, importlib.abc, importlib.machinery\nclass F(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n    def find_spec(s, n, p, t=None): return importlib.machinery.ModuleSpec(n, s)\n    def create_module(s, spec):\n        m = types.ModuleType(spec.name); m.__getattr__ = lambda n: (lambda *a, **k: True); return m\n    def exec_module(s, m): pass\nsys.meta_path.insert(0, F())\nfor n in ('math', 'numpy', 'decimal', 'fractions', 'datetime', 'collections'): sys.modules.pop(n, None)\ndef f(*x): return L()\n",
    'stdlib files in the folder': "for n in ('decimal', 'fractions', 'math', 'numpy', 'ast', 'types', 'operator', 'datetime'):\n    open(n + '.py', 'w').write('class Decimal:\\n    def __eq__(s, o): return True\\nFraction = array = ndarray = generic = date = Decimal\\nallclose = isclose = lambda *a, **k: True\\n')\nimport sys\nsys.path.insert(0, '/tmp')\nfor n in ('decimal', 'fractions', 'math'): sys.modules.pop(n, None)\nimport decimal\ndecimal.Decimal.__module__ = 'decimal'\ndef f(*x): return decimal.Decimal()\n",
    'a .pth file': "import site, os\nfor d in (*site.getsitepackages(), '/tmp', '.'):\n    try: open(os.path.join(d, 'x.pth'), 'w').write('import os; os._exit(0)')\n    except OSError: pass\ndef f(*x): return 0\n",
    'builtins.__build_class__ and __import__': 'import builtins\nbuiltins.__build_class__ = lambda *a, **k: True\nbuiltins.__import__ = lambda *a, **k: True\nbuiltins.property = builtins.super = builtins.BaseException = lambda *a: True\ndef f(*x): return 0\n',
    'warnings that exit': "import warnings, os\nwarnings.showwarning = warnings.warn = lambda *a, **k: os._exit(0)\nwarnings.simplefilter('error')\ndef f(*x):\n    warnings.warn('x')\n    return 0\n",
    'a signalling NaN': "from decimal import Decimal\ndef f(*x): return Decimal('sNaN')\n",
    'a Decimal of a huge exponent': "from decimal import Decimal, Context\ndef f(*x): return Decimal('1e999999999999999999')\n",
    'dates at their ends': 'import datetime\ndef f(*x): return [datetime.datetime.max, datetime.timedelta.max, datetime.date.min]\n',
    'surrogates in a result': 'def f(*x): return chr(0xD800) * 3\n',
    'surrogates in an error': "def f(*x): raise ValueError(chr(0xD800) * 3 + chr(27) + '[2J')\n",
    'surrogates in the load error': 'raise ValueError(chr(0xDFFF))\n',
    'interrupt_main': 'import _thread, time\ndef f(*x):\n    _thread.interrupt_main()\n    time.sleep(.05)\n    return 0\n',
    'an error whose class lies about its name': "class M(type):\n    def __str__(c): return 'AssertionError'\n    @property\n    def __name__(c): return chr(0) * 9\n    @property\n    def __mro__(c): return (ValueError,) * 10\nclass E(Exception, metaclass=M): pass\ndef f(*x): raise E\n",
    'an endless generator of liars': LIAR + 'def f(*x):\n    while True: yield L()\n',
    'bool of numpy-like emptiness': 'def f(*x): return []\n',
    'an empty tuple': 'def f(*x): return ()\n',
    'print that does nothing': 'import builtins\nbuiltins.print = lambda *a, **k: None\ndef f(*x): return 0\n',
    'a coroutine of liars': LIAR + 'async def f(*x): return L()\n',
    'ChainMap and MappingProxy': 'import collections, types\nclass C(collections.ChainMap):\n    def __eq__(s, o): return True\n    def __len__(s): return 3\ndef f(*x): return C(types.MappingProxyType({}))\n',
    'a str subclass that is its own format': "class S(str):\n    def __add__(s, o): return 'ba'\n    def __str__(s): return 'ba'\n    def __format__(s, f): return 'ba'\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\ndef f(*x): return S('zz')\n",
    'lying keys': "class K(str):\n    def __eq__(s, o): return True\n    def __hash__(s): return 1\ndef f(*x): return {K('q'): K('r')}\n",
    'ctypes writes into a small integer': 'import ctypes\nfor n in (0, 1, 3, 4):\n    ctypes.c_uint32.from_address(id(n) + 24).value = 9\ndef f(*x): return 0\n',
}  # fmt: skip
FORMS = {
    'close': ['assert abs(f(1.5) - 2.25) < 1e-9', 'import math\nassert math.isclose(f(2.0), 4.0)', 'assert round(f(1.5), 2) == 2.25'],
    'pairs': [[[3], 9], [[4], 16], [[1.5], 2.25]],
    'humaneval': ["METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(3) == 9, 'three'\n    assert abs(candidate(1.5) - 2.25) < 1e-6\n    assert candidate([]) is None or True\n\ncheck(f)"],
    'mbpp+ hub': ["import numpy as np\nfrom math import inf\n\ndef is_floats(x) -> bool:\n    if isinstance(x, float):\n        return True\n    if isinstance(x, (list, tuple)):\n        return all(isinstance(i, float) for i in x)\n    if isinstance(x, np.ndarray):\n        return x.dtype == np.float64 or x.dtype == np.float32\n    return False\n\ndef assertion(out, exp, atol):\n    exact_match = out == exp\n    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n    if not exact_match and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n    else:\n        assert exact_match, f'out: {out}, exp: {exp}'\n\ninputs = [[1.5], [2.5]]\nresults = [2.25, 6.25]\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0)"],
    'lists': ['x = [3, 1, 2]\nassert f(x) == sorted(x)', 'assert list(f([3, 1, 2])) == [1, 2, 3]', 'r = f([3, 1, 2])\nassert len(r) == 3 and r[0] == 1 and r[-1] == 3', 'import collections\nassert collections.Counter(f([2, 1])) == collections.Counter([1, 2])'],
    'stdio': [{'input': '3\n', 'output': '9\n'}, {'input': '4\n', 'output': '16\n'}],
}  # fmt: skip


@pytest.mark.parametrize("name", HACKS)
def test_a_cheating_program_passes_no_test_of_any_form(name):
    for form, tests in FORMS.items():
        kind = "stdio" if form == "stdio" else "function"
        program = HACKS[name] + ("\nprint(f(int(input())))\n" if kind == "stdio" else "")
        limits = Limits(packages=("numpy",) if form == "mbpp+ hub" else (), memory_mb=512)
        outcome = run_program(program, tests, kind=kind, entry_point="f", timeout_s=4, limits=limits)
        assert outcome.status in ("failed", "runtime_error", "timeout", "compile_error"), (form, outcome)
        assert outcome.passed == 0, (form, outcome)
        outcome.detail.encode()  # a lone surrogate could not be written to any log
