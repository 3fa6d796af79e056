"""A wheel, installed outside the checkout, holds everything and works there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
# Modules that may fail to import, and only for want of these.
OPTIONAL = ("vllm", "deepspeed", "gguf", "reasoning_gym", "ray", "wandb", "trackio", "tensorboard", "openai", "httpx")
WALK = """
import importlib, pkgutil, sys
import llmrl
assert not llmrl.__file__.startswith(sys.argv[1]), llmrl.__file__
names = [m.name for m in pkgutil.walk_packages(llmrl.__path__, "llmrl.")]
for name in names:
    if name.endswith(".__main__"):
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in sys.argv[2].split(","):
            raise
print(len(names), "llmrl.rewards.exact_number" in names, "llmrl.eval.run" in names)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(wheel, the folder it is installed in)"""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves a build folder behind, whose old files would be in the next wheel.
    source = folder / "source"
    shutil.copytree(
        ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "tests")
    )
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return wheel, folder / "site"


def outside(installed, *arguments):
    _, site = installed
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_module_recipe_and_asset(installed):
    names = set(zipfile.ZipFile(installed[0]).namelist())
    for folder in ("rewards", "eval", "recipes", "launch"):
        for file in (ROOT / folder).rglob("*"):
            if (
                file.suffix in {".py", ".yaml", ".css", ".js", ".html", ".txt", ".sh"}
                and "__pycache__" not in file.parts
            ):
                assert f"llmrl/{file.relative_to(ROOT)}" in names, file
    for file in (ROOT / "llmrl").glob("*/*"):
        if file.suffix in {".py", ".css", ".js", ".html"}:
            assert str(file.relative_to(ROOT)) in names, file
    assert "llmrl/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"llmrl"} | {top for top in tops if top.endswith(".dist-info")}


def test_it_lists_its_recipes(installed):
    out = outside(installed, "-m", "llmrl", "recipes")
    assert "recipes/arithmetic/grpo.yaml" in out and str(installed[1]) in out


def test_it_plans_a_recipe_by_the_name_that_it_lists(installed):
    out = outside(installed, "-m", "llmrl", "plan", "recipes/arithmetic/grpo.yaml", "train.steps=7")
    assert "run folder" in out and str(ROOT) not in out


def test_every_module_imports(installed):
    count, rewards, evaluation = outside(installed, "-c", WALK, str(ROOT), ",".join(OPTIONAL)).split()[-3:]
    assert int(count) > 80 and rewards == evaluation == "True"


def test_it_writes_a_report(installed, tmp_path):
    from tests.report.synthetic import write_run

    run = write_run(tmp_path / "run")
    code = "import sys; from pathlib import Path; from llmrl.report.page import write_report\n"
    code += "print(write_report(Path(sys.argv[1])))"
    page = Path(outside(installed, "-c", code, str(run or tmp_path / "run")).split()[-1])
    assert "<script" in page.read_text() and page.stat().st_size > 10_000
