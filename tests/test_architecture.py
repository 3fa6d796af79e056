"""Imports point one way, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = {"cli.py", "compose.py", "api.py"}  # with commands/: whatever may name rewards and benchmarks
OWN = {"rewards": "llmrl.rewards", "eval": "llmrl.eval"}
# From the ground up: a module or folder imports those before it, and nothing after it. A new one takes its place here.
FLOORS = [
    "types", "errors", "nearest", "importing", "later", "atomic", "cache", "hardware", "seeding", "memory", "batch",
    "settings", "rewards", "data", "credit", "losses_outcome", "losses", "policy", "automatic", "algos", "envs", "rollout",
    "train", "stages", "control", "privacy", "report", "eval", "start",
    "launcher", "sizing", "step_time", "conformance", "compose", "api", "commands", "cli", "__main__",
]  # fmt: skip


def modules(folder):
    """Python files of a top-level folder; llmrl's symlinks to the other folders are not followed."""
    return [
        file
        for file in sorted((ROOT / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in file.parents if parent != ROOT and ROOT in parent.parents)
    ]


@cache
def imports(file, *, at_once=False):
    """Every module that a file imports anywhere, or only `at_once`, when it is imported itself."""
    return tuple(names_imported(file, at_once))


def names_imported(file, at_once):
    tree = ast.parse(file.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def test_the_folders_are_found():
    assert len(modules("llmrl")) > 40 and len(modules("rewards")) > 5 and len(modules("eval")) > 5
    assert not any("rewards" in file.parts for file in modules("llmrl"))


def test_llmrl_imports_neither_rewards_nor_eval_but_where_recipes_become_objects():
    for file in modules("llmrl"):
        place = file.relative_to(ROOT / "llmrl").as_posix()
        if place not in COMMANDS and not place.startswith("commands/"):
            wrong = [name for name in imports(file) if any(within(name, package) for package in OWN.values())]
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_rewards_import_the_shared_words_the_errors_the_loader_and_no_torch():
    for file in modules("rewards"):
        for name in imports(file):
            allowed = any(
                within(name, own) for own in ("llmrl.types", "llmrl.errors", "llmrl.importing", "llmrl.rewards")
            )
            assert allowed or not within(name, "llmrl") or name == "llmrl", f"{file.name} imports {name}"
        for name in imports(file, at_once=True):
            assert not within(name, "torch") and not within(name, "transformers"), f"{file.name} imports {name}"


def test_nobody_imports_the_folders_by_their_bare_names():
    for folder in ("llmrl", "rewards", "eval", "tests"):
        for file in modules(folder):
            wrong = [name for name in imports(file) if any(within(name, bare) for bare in OWN)]
            assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_only_the_vllm_engine_imports_vllm():
    found = {
        file.name for folder in ("llmrl", "rewards", "eval") for file in modules(folder) if "vllm" in set(imports(file))
    }
    assert found == {"vllm.py"}


def test_no_file_of_ours_has_the_name_of_a_top_level_module_of_the_standard_library():
    taken = {"code", "math", "random", "statistics", "string", "types"} - {"types"}  # llmrl.types is a name of its own
    for folder in ("llmrl", "rewards", "eval"):
        assert not [file for file in modules(folder) if file.stem in taken]


HEAVY = "{'torch', 'transformers', 'vllm', 'datasets', 'accelerate', 'peft', 'trl', 'matplotlib', 'pyarrow'}"


@pytest.mark.parametrize(
    "code",
    [
        "import llmrl",
        "import llmrl.types, llmrl.rewards",
        "import llmrl.settings.load",
        "import sys; sys.argv = ['llmrl', '--help']\nfrom llmrl.cli import main\ntry:\n    main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['llmrl', 'recipes']\nfrom llmrl.cli import main\ntry:\n    main()\nexcept SystemExit: pass",
    ],
)
def test_light_imports_stay_light(code):
    check = f"\nimport sys\nheavy = {HEAVY} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_only_the_public_file_imports_the_insides_of_the_maths_checker():
    inside = "llmrl.rewards.maths"
    for folder in ("llmrl", "rewards", "eval"):
        for file in modules(folder):
            if file.parent.name != "maths" and file != ROOT / "rewards" / "math_answer.py":
                assert not [name for name in imports(file) if within(name, inside)], file


def test_nothing_outside_imports_the_insides_of_the_sandbox():
    package = ROOT / "rewards" / "sandbox"
    inside = [f"llmrl.rewards.sandbox.{file.stem}" for file in package.glob("*.py") if file.stem != "__init__"]
    for folder in ("llmrl", "rewards", "eval"):
        for file in modules(folder):
            if file.parent != package:
                assert not [name for name in imports(file) if any(within(name, one) for one in inside)], file


# --- inside llmrl/, the symlinks to rewards/ and eval/ included ---


@cache
def graph():
    """Module -> the modules of ours that it imports: at once, inside functions, or for its types."""
    names = {}
    for folder in ("llmrl", *OWN):
        for file in modules(folder):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            names[".".join([OWN.get(folder, folder), *parts]).removesuffix(".__init__")] = file
    return {name: set(imported(file, names)) - {name, "llmrl"} for name, file in names.items()}


def imported(file, known):
    """The modules of `known` that a file imports; `from llmrl.eval import metrics` is about llmrl.eval.metrics alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in known else node.module for name in whole]
        else:
            continue
        yield from (name for name in found if name in known)


def floor(name):
    return name.split(".")[1]


def circles(edges):
    """Sets of nodes that reach one another."""
    reach = {node: set(found) for node, found in edges.items()}
    for middle in edges:
        for node in edges:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    return {frozenset(other for other in reach[node] if node in reach[other]) for node in edges if node in reach[node]}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}


def test_no_modules_import_each_other_in_a_circle():
    assert circles(graph()) == set()


def test_no_folders_import_each_other_in_a_circle():
    edges = {floor(name): set() for name in graph() if name != "llmrl"}
    for name, found in graph().items():
        if name != "llmrl":
            edges[floor(name)] |= {floor(other) for other in found} - {floor(name)}
    assert circles(edges) == set()


def test_every_module_has_its_floor_and_imports_nothing_of_a_higher_one():
    edges = {name: found for name, found in graph().items() if name != "llmrl"}
    assert {floor(name) for name in edges} <= set(FLOORS), "give the new module or folder its place in FLOORS"
    climbs = [
        f"{name} -> {other}"
        for name, found in edges.items()
        for other in found
        if FLOORS.index(floor(other)) > FLOORS.index(floor(name))
    ]
    assert not climbs, climbs
