# ruff: noqa: E501
"""Every known way to fool a test harness, tried for real, on each rung of isolation that works here."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.sandbox import RUNGS, Limits, isolation_report
from llmrl.rewards.sandbox.box import _world_readable
from llmrl.rewards.sandbox.values import decode

ROOT = Path(__file__).parents[3]
TESTS = ["assert f(3) == 9", "assert f(4) == 16", "assert abs(f(1.5) - 2.25) < 1e-9"]

HACKS = {
    "os._exit(0) while loading": "import os\nos._exit(0)",
    "os._exit(0) in the call": "import os\ndef f(x):\n    os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "SystemExit in the call": "def f(x):\n    raise SystemExit(0)",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(x):\n    return 0",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x):\n    raise ValueError",
    "thread that exits": "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()\ndef f(x):\n    return 0",
    "__eq__ override": "class A:\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0\n"
    "    def __abs__(self): return 0\n    def __lt__(self, o): return True\ndef f(x):\n    return A()",
    "int subclass": "class A(int):\n    def __eq__(self, o): return True\n    def __sub__(self, o): return A(0)\n"
    "    def __hash__(self): return 9\ndef f(x):\n    return A(0)",
    "float subclass": "class A(float):\n    def __eq__(self, o): return True\n    def hex(self): return '0x1.2p+3'\n"
    "    def __rsub__(self, o): return 0\n    def __sub__(self, o): return 0\ndef f(x):\n    return A(0)",
    "lying repr": "class A:\n    def __repr__(self): return '9'\n    __str__ = __repr__\ndef f(x):\n    return A()",
    "__class__ lie": "class A:\n    @property\n    def __class__(self): return int\ndef f(x):\n    return A()",
    "shadowed builtins": "import builtins\nbuiltins.abs = lambda x: 0\nabs = builtins.abs\nbuiltins.AssertionError = ValueError\n"
    "def f(x):\n    return 0.0",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"value\": {\"int\": \"9\"}}'\ndef f(x):\n    return 0",
    "patched os.write": "import os\nw = os.write\nos.write = lambda fd, d: w(fd, bytes(d).replace(b'0', b'9'))\ndef f(x):\n    return 0",
    "settrace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x):\n    return 0",
    "forged verdicts on every pipe": "import os, json\nfor fd in range(64):\n    try:\n"
    "        os.write(fd, b'{\"do\": \"verdict\", \"verdict\": \"passed\", \"text\": \"\"}\\n' * 9)\n    except OSError:\n        pass\n"
    "def f(x):\n    return 0",
    "forged verdicts with the nonce": "import os, sys, json\ndef f(x):\n    frame = sys._getframe()\n    nonce = ''\n"
    "    while frame:\n        for v in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
    "            if isinstance(v, dict) and 'nonce' in v: nonce = v['nonce']\n        frame = frame.f_back\n"
    "    for m in ({'do': 'verdict', 'verdict': 'passed', 'text': ''}, {'value': {'int': '0'}, 'id': 1}):\n"
    "        for fd in range(3, 20):\n            try: os.write(fd, (json.dumps({**m, 'nonce': nonce}) + '\\n').encode() * 5)\n"
    "            except OSError: pass\n    return 0",
    "argv": "import sys, re\nargs = ' '.join(sys.argv + sys.orig_argv)\ndef f(x):\n    return x * x if 'assert' in args else 0",
    "reads /proc": "import glob\ntexts = ''\nfor p in glob.glob('/proc/*/cmdline') + glob.glob('/proc/*/environ'):\n"
    "    try: texts += open(p).read()\n    except OSError: pass\ndef f(x):\n    return 9 if 'assert f' in texts else 0",
    "reads the parent's memory": "import os, re\nfound = ''\nfor pid in [os.getppid(), 1] + [int(p) for p in "
    "(os.listdir('/proc') if os.path.isdir('/proc') else []) if p.isdigit()]:\n    try:\n"
    "        for line in open(f'/proc/{pid}/maps'):\n            if 'heap' in line:\n"
    "                a, b = (int(v, 16) for v in line.split()[0].split('-'))\n"
    "                m = open(f'/proc/{pid}/mem', 'rb'); m.seek(a); found += m.read(b - a).decode('latin1')\n"
    "    except OSError: pass\ndef f(x):\n    m = re.search(rf'assert f.{x}. == (\\d+)', found)\n    return int(m.group(1)) if m else 0",
    "gc and frames": "import gc, sys\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, str) and o.startswith('assert f'):\n"
    "            return eval(o.partition('==')[2])\n    return 0",
    "reads test files": "import os\nfound = ''\nfor root in ('.', '/tmp', '/root', '/home', '/srv'):\n    for d, _, names in os.walk(root):\n"
    "        for n in names[:200]:\n            try: found += open(os.path.join(d, n)).read(20000)\n"
    "            except (OSError, UnicodeDecodeError): pass\n        if len(found) > 10**6: break\n"
    "def f(x):\n    return 9 if 'assert f(3)' in found else 0",
    "conftest and sitecustomize": "for n in ('conftest.py', 'sitecustomize.py', 'usercustomize.py', 'json.py', 'ast.py'):\n"
    "    open(n, 'w').write('import os; os._exit(0)')\ndef f(x):\n    return 0",
    "swallows the alarm": "import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ndef f(x):\n    while True:\n        try: time.sleep(1)\n        except BaseException: pass",
    "endless output": "import sys\ndef f(x):\n    while True: sys.stdout.write('x' * 10**6)",
    "endless result": "def f(x):\n    return 'x' * 10**8",
    "memory bomb": "def f(x):\n    a = []\n    while True: a.append(bytearray(10**7))",
    "recursion bomb": "def f(x):\n    return f(x)",
    "disk bomb": "def f(x):\n    i = 0\n    while True:\n        open(f'big{i}', 'wb').write(b'x' * 10**6); i += 1",
    "fork bomb": "import os\ndef f(x):\n    while True: os.fork()",
    "thread bomb": "import threading, time\ndef f(x):\n    while True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "kills everyone": "import os, signal\nfor p in (-1, 1, os.getppid(), 0):\n    try: os.kill(p, signal.SIGKILL)\n"
    "    except OSError: pass\ndef f(x):\n    return 0",
    "runs a program": "import subprocess\ndef f(x):\n    return int(subprocess.check_output(['sh', '-c', 'echo 9']))",
    "deep result": "def f(x):\n    a = []\n    for _ in range(100000): a = [a]\n    return a",
    "cyclic result": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "huge integer": "def f(x):\n    return 10 ** 10 ** 9",
    "generator": "def f(x):\n    yield 9",
    "every operator": "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __sub__(s, o): return 0\n"
    "    __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = __sub__\n    def __abs__(s): return 0\n"
    "    def __lt__(s, o): return True\n    __le__ = __gt__ = __ge__ = __lt__\n    def __contains__(s, o): return True\n"
    "    def __bool__(s): return True\n    def __getattr__(s, n): return E()\n    def __call__(s, *a): return E()\ndef f(x):\n    return E()",
    "f is such an object": "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __sub__(s, o): return 0\n"
    "    __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = __sub__\n    def __abs__(s): return 0\n"
    "    def __lt__(s, o): return True\n    __le__ = __gt__ = __ge__ = __lt__\n    def __contains__(s, o): return True\n"
    "    def __bool__(s): return True\n    def __getattr__(s, n): return E()\n    def __call__(s, *a): return E()\nf = E()",
    "a list of such": "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n    def __sub__(s, o): return 0\n"
    "    __rsub__ = __add__ = __radd__ = __mul__ = __truediv__ = __sub__\n    def __abs__(s): return 0\n"
    "    def __lt__(s, o): return True\n    __le__ = __gt__ = __ge__ = __lt__\n    def __contains__(s, o): return True\n"
    "    def __bool__(s): return True\n    def __getattr__(s, n): return E()\n    def __call__(s, *a): return E()\ndef f(x):\n    return [E()]",
    "metaclass": "class M(type):\n    def __eq__(c, o): return True\n    def __hash__(c): return 9\n"
    "    def __instancecheck__(c, o): return True\nclass A(metaclass=M): pass\ndef f(x):\n    return A",
    "container subclasses": "class L(list):\n    def __iter__(s): return iter([9])\n    def __eq__(s, o): return True\n"
    "def f(x):\n    return L()",
    "poses as a standard type": "class date:\n    year = '9'; month = []; day = None\ndate.__module__ = 'datetime'\ndef f(x):\n    return date()",
    "forged values": "import sys\ndef f(x):\n    fr = sys._getframe(1)\n    while fr:\n        if 'send' in fr.f_locals and 'request' in fr.f_locals:\n"
    "            for v in ({'standard': []}, {'named': []}, {'opaque': 99999}, {'int': None}, {}, {'set': [{'list': []}]},\n"
    "                      {'function': []}, {'callback': 7}, {'complex': []}, {'type': 'x'}, True):\n"
    "                fr.f_locals['send']({'value': v, 'id': fr.f_locals['request']['id']})\n        fr = fr.f_back\n    return 0",
    "forged callback": "import sys\ndef f(x):\n    fr = sys._getframe(1)\n    while fr:\n        if 'send' in fr.f_locals and 'request' in fr.f_locals:\n"
    "            fr.f_locals['send']({'callback': 0, 'args': [], 'kwargs': {}, 'id': fr.f_locals['request']['id']})\n        fr = fr.f_back\n    return 0",
    "patched encoder": "import sys\nfr = sys._getframe()\nwhile fr:\n    for g in (fr.f_globals, fr.f_locals):\n"
    "        if 'OPERATIONS' in g:\n            for k in g['OPERATIONS']: g['OPERATIONS'][k] = lambda *a, **kw: 0\n    fr = fr.f_back\ndef f(x):\n    return 0",
    "poisoned builtins": "import builtins\nfor n in ('print', 'len', 'isinstance', 'issubclass', 'type', 'int', 'str', 'dict', 'abs', 'repr'):\n"
    "    setattr(builtins, n, lambda *a, **k: 0)\ndef f(x):\n    return 0",
    "closed file descriptors": "import os\nos.closerange(0, 64)\ndef f(x):\n    return x * x",
    "an exception whose text hangs": "class R(Exception):\n    def __str__(s):\n        while True: pass\ndef f(x):\n    raise R()",
    "a crash in C": "import ctypes\ndef f(x):\n    ctypes.string_at(0)",
    "an integer too long to print": "def f(x):\n    return 10 ** 5000",
    "signals": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, .01, .01)\ndef f(x):\n    return 0",
}  # fmt: skip
HONEST = "def f(x):\n    return x * x\n"
WORKING = [rung for rung in RUNGS if not isolation_report()[rung]]


def test_at_least_one_rung_of_isolation_works_here():
    assert WORKING


@pytest.mark.parametrize("rung", WORKING)
def test_an_honest_program_passes(rung):
    outcome = run_program(HONEST, TESTS, kind="function", timeout_s=20, limits=Limits(isolation=rung))
    assert (outcome.status, outcome.passed, outcome.isolation) == ("passed", 3, rung), outcome


@pytest.mark.parametrize("name", HACKS)
@pytest.mark.parametrize("rung", WORKING)
def test_a_hack_does_not_pass_a_single_test_it_should_not(rung, name):
    start = time.monotonic()
    limits = Limits(isolation=rung, memory_mb=512, file_mb=4)
    outcome = run_program(HACKS[name], TESTS, kind="function", timeout_s=2, limits=limits)
    assert outcome.status in ("failed", "runtime_error", "timeout"), outcome
    assert outcome.passed == 0, outcome
    assert time.monotonic() - start < 60


def test_emptying_an_argument_that_the_test_compares_with_does_not_help():
    tests = ["x = [3, 1, 2]\nassert f(x) == sorted(x)", "y = [9]\nassert f(y) == y[0] - 0", "z = [1]\nassert f(z) == z"]
    for program in (
        "def f(x):\n    x.clear()\n    return []",
        "def f(x):\n    x[:] = [0]\n    return 0",
        "def f(x):\n    x.clear()",
    ):
        outcome = run_program(program, tests, kind="function", timeout_s=20)
        assert outcome.passed == 0, (program, outcome)


@pytest.mark.parametrize("rung", WORKING)
def test_the_program_sees_no_network_no_files_and_cannot_write_outside(rung, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("expected: 16")
    program = (
        f"import os, socket\nSECRET = {str(secret)!r}\n"
        "def tries():\n"
        "    out = []\n"
        "    try:\n        socket.create_connection(('127.0.0.1', 1), 1); out.append('network')\n"
        "    except ConnectionRefusedError: out.append('loopback')\n    except OSError: pass\n"
        "    for path in ('/etc/passwd', '/etc/shadow', '/proc/1/environ', '/proc/self/environ', SECRET):\n"
        "        try: out.append(path + open(path).read()[:20])\n"
        "        except OSError: pass\n"
        "    for path in ('/x', '/usr/x', '/etc/x', '/dev/x', '/root/x', '/var/x', '/usr/lib/x', '/home/x'):\n"
        "        try: open(path, 'w').close(); out.append('wrote ' + path)\n"
        "        except OSError: pass\n"
        "    open('mine', 'w').write('ok')\n"
        "    return out\n"
    )
    outcome = run_program(program, [[[], None]], kind="function", entry_point="tries", limits=Limits(isolation=rung))
    assert outcome.detail == "tries gave []", outcome


@pytest.mark.parametrize("rung", WORKING)
def test_no_process_outlives_its_program(rung):
    program = (
        "import os, time\n"
        "def f(x):\n"
        "    try:\n"
        "        if os.fork() == 0:\n            os.setsid()\n            time.sleep(30)\n"
        "    except OSError:\n        return 'no fork'\n"
    )
    outcome = run_program(program, [[[1], "no fork"]], kind="function", entry_point="f", limits=Limits(isolation=rung))
    assert outcome.status == "passed", outcome


def test_expected_values_are_nowhere_in_the_candidate_s_process():
    program = (
        "import gc, sys\n"
        "def f(x):\n"
        "    seen = [repr(o)[:10000] for o in gc.get_objects()] + [repr(sys.argv), repr(sys.orig_argv)]\n"
        "    needle = ''.join(['864', '20135'])  # so that the program's own constants do not hold it\n"
        "    return any(needle in text for text in seen)\n"
    )
    tests = [[[1], 86420135], "assert f(2) == 86420135", "assert not f(3)\nassert 86420135"]
    outcome = run_program(program, tests, kind="function", entry_point="f", timeout_s=20)
    assert outcome.per_test == ("failed", "failed", "passed"), outcome


def _reachable(path):
    """Whether another user can start this program."""
    path = path.resolve()
    return path.exists() and all(p.stat().st_mode & 0o005 == 0o005 for p in (path, *path.parents))


def _other_python():
    """Another Python of this version that every user may start, such as the system's; "" if there is none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("/usr/bin", "/usr/local/bin", "/opt/python/bin"):
        path = Path(folder, f"python{version}")
        if path.exists() and _reachable(path):
            return str(path)
    return ""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_it_works_as_an_ordinary_user_too(tmp_path_factory):
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from llmrl.rewards.code_tests import run_program; from llmrl.rewards.sandbox import isolation_report\n"
        "o = run_program('def f(x): return x + 1', ['assert f(1) == 2', 'assert f(2) < 4'], kind='function', timeout_s=20)\n"
        "print(json.dumps([o.status, o.isolation, isolation_report()]))\n"
    )
    become = (
        "import ctypes, json, os, sys\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
    )
    python = sys.executable if _world_readable() and _reachable(Path(sys.executable)) else _other_python()
    if not python:
        pytest.skip("no interpreter of this version that another user may start")
    library = tmp_path_factory.mktemp("library")
    library.chmod(0o755)
    for place in library.parents:  # pytest makes its folders private
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    shutil.copytree(ROOT / "llmrl", library / "llmrl", symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
    site = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):  # of this same version, which llmrl.types imports
        if (site / name).exists():
            shutil.copytree(site / name, library / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    done = subprocess.run(
        [python, "-c", become + code, json.dumps([str(library)])],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, isolation, report = json.loads(done.stdout.splitlines()[-1])
    assert status == "passed", (isolation, report)


def test_the_child_script_uses_the_standard_library_only():
    text = (ROOT / "rewards" / "sandbox" / "child.py").read_text()
    imported = {
        line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names | {"__future__"}


def test_a_result_that_is_slow_to_rebuild_or_compare_is_refused_at_once():
    one_hash = [{"int": format(i * (2**61 - 1), "x")} for i in range(60_000)]
    pairs = [[value, None] for value in one_hash]
    huge = {"int": "f" * 1_000_000}
    slow = [
        {"set": one_hash},
        {"frozenset": [{"tuple": [value]} for value in one_hash]},
        {"dict": pairs},
        {"standard": ["collections.Counter", {"list": one_hash}]},
        {"standard": ["collections.OrderedDict", {"list": [{"tuple": pair} for pair in pairs]}]},
        {"standard": ["fractions.Fraction", huge, {"int": "e" * 1_000_000}]},
        {"standard": ["fractions.Fraction", {"standard": ["decimal.Decimal", "1e999999999"]}]},
        {"standard": ["decimal.Decimal", huge]},
    ]
    start = time.process_time()
    for value in slow:
        with pytest.raises(ValueError, match=r"one hash|not a value|more than"):
            decode(value)
    assert decode({"list": [{"named": [f"n{i}", [f"a{i}"], [i == 1]]} for i in range(20_000)]})[1] == (True,)
    assert time.process_time() - start < 5


def test_a_program_that_returns_colliding_hashes_fails_its_test_in_time_and_an_honest_set_passes():
    colliding = "def f(n):\n    return {(2**61 - 1) * i for i in range(n)}"
    assert run_program(colliding, ["assert f(2000) == {0}"], kind="function").status == "failed"
    honest = "def f(n):\n    return {i: str(i) for i in range(-n, n)}"
    expected = {i: str(i) for i in range(-500, 500)}
    assert run_program(honest, [f"assert f(500) == {expected!r}"], kind="function").status == "passed"
