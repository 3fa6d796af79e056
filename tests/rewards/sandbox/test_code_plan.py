"""The names that a test takes from the program are read from the test; what the program defines changes nothing."""

import pytest

from llmrl.rewards.code_tests import run_program
from llmrl.rewards.sandbox.plan import Call, Script, plan_tests

REFERENCE_TEST = """
import copy, math
_scope = {}
exec('def half(x):\\n    return [v / 2 for v in x]', _scope)

def _same(a, b):
    return isinstance(a, list) and len(a) == len(b) and all(math.isclose(x, y) for x, y in zip(a, b))

for x in ([1, 2], [3.5], []):
    assert _same(half(copy.deepcopy(x)), _scope['half'](x)), sorted(x)
"""
YES = "class Yes:\n    def __getattr__(self, name): return Yes()\n    def __call__(self, *a, **k): return Yes()\n"
SHADOWS = {
    "exec": "def exec(code, scope):\n    scope['half'] = half\ndef half(x):\n    return 0\n",
    "exec that hands over a scope": "def exec(code, scope):\n    scope['half'] = lambda x: []\ndef half(x):\n    return []\n",
    "isinstance": "def isinstance(a, b): return True\ndef half(x):\n    return 0\n",
    "len and all": "def len(x): return 0\ndef all(x): return True\ndef half(x):\n    return [0]\n",
    "sorted": "def sorted(x): return x\ndef half(x):\n    return 0\n",
    "a class called math": "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef half(x):\n    return list(x)\n",
    "a class called list": "class list: pass\ndef half(x):\n    return [0 for _ in x]\n",
    "AssertionError": "class AssertionError(Exception): pass\ndef half(x):\n    return 0\n",
    "all of them": YES
    + "exec = isinstance = len = all = sorted = zip = math = copy = Yes()\ndef half(x):\n    return x\n",
}


@pytest.mark.parametrize("entry_point", [None, "half"])
@pytest.mark.parametrize("name", SHADOWS)
def test_a_program_that_defines_what_the_test_uses_gains_nothing(name, entry_point):
    more = {"kind": "function", "entry_point": entry_point, "timeout_s": 20}
    assert run_program(SHADOWS[name], [REFERENCE_TEST], **more).status in ("failed", "runtime_error")
    honest = SHADOWS[name].replace("def half", "def other") + "def half(x):\n    return [v / 2 for v in x]\n"
    assert run_program(honest, [REFERENCE_TEST], **more).status == "passed"


@pytest.mark.parametrize(
    "test",
    [
        "assert math.isclose(f(0.1), 0.2)",
        "assert isclose(f(0.1), 0.2)",
        "assert Counter(f('ab')) == Counter('ba')",
        "assert np.allclose(f(1), [2])",
        "assert deepcopy(f(1)) == {2}",
    ],
)
def test_a_library_name_that_the_test_does_not_import_is_still_the_library_s(test):
    program = YES + "    def __eq__(self, o): return True\n    def __bool__(self): return True\n"
    program += "math = np = Yes()\nisclose = Counter = deepcopy = lambda *a: Yes()\ndef f(x):\n    return []\n"
    assert run_program(program, [test], kind="function", timeout_s=20).passed == 0


def test_which_names_belong_to_the_program():
    def names(test, entry_point=None):
        (plan,) = plan_tests([test], entry_point, "")
        assert isinstance(plan, Script)
        return plan.stubs, sorted(plan.library)

    assert names("assert abs(f(1) - 2) < math.inf") == (("f",), ["math"])
    assert names("assert set(g(1)) == {1}") == (("g",), [])
    assert names("assert abs(sum(1, 2) - 3) < 1", "sum") == (("sum",), [])
    assert names("assert queue(1) > 0") == (("queue",), [])  # a module cannot be called
    assert names("def check(f):\n    assert f(1)\ncheck(f)") == (("f",), [])  # the argument is another f
    assert names("check = [f(i) for i in range(3)]\nassert check") == (("f",), [])
    assert names("s = Stack()\ns.push(1)\nassert s.pop() == 1") == (("Stack",), [])
    assert plan_tests(["assert sum(1, 2) == 3"], None, "") == [Call("sum", (1, 2), {}, 3)]
    both = plan_tests(["assert sum(f(1)) == 3", "assert sum([1, 2]) == 3"], None, "")
    assert [plan.stubs for plan in both] == [("f",), ()]


def test_a_test_that_leaves_open_which_function_is_meant_is_a_harness_error():
    outcome = run_program("def sum(a): return 3", ["assert abs(sum(3)) == 3"], kind="function")
    assert outcome.status == "harness_error"
    assert "abs, sum" in outcome.detail
