"""Two processes learn what one does, whichever back-end shares the policy, and each reads the others' checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmrl.train.checkpoint import damage, folder_of, read_optimizer
from llmrl.train.world import World
from tests.train.sharing import Case, run_case, write_cases

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # largest difference of a weight after five steps, over the largest distance a weight went


def together(cases: list[Case], folder: Path) -> None:
    """Run the cases with two processes."""
    file = folder / "cases.json"
    write_cases(file, cases)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.train.sharing"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *launcher, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]


def difference(one: Path, other: Path, start: Path | None = None) -> float:
    """Largest difference between the master weights of two checkpoints, over the largest distance from the start."""
    mine, yours = read_optimizer(one), read_optimizer(other)
    assert set(mine) == set(yours)
    names = [name for name in mine if name.startswith("master/")]
    gap = max(float((mine[name] - yours[name]).abs().max()) for name in names)
    size = max(float(mine[name].abs().max()) for name in names)
    return gap / size


def assert_same_folder(one: Path, other: Path) -> None:
    """The same files, and weights with the same names, precision and values within the tolerance."""
    files = [{str(f.relative_to(x)) for f in x.rglob("*") if f.is_file()} for x in (one / "policy", other / "policy")]
    assert files[0] == files[1] and "model.safetensors" in files[0]
    for name in (name for name in files[0] if name.endswith(".safetensors")):
        mine, yours = load_file(one / "policy" / name), load_file(other / "policy" / name)
        assert mine.keys() == yours.keys()
        for key, tensor in mine.items():
            assert tensor.dtype == yours[key].dtype
            torch.testing.assert_close(tensor, yours[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_fsdp2_with_two_processes_gives_the_weights_of_one(tmp_path: Path, tiny_model: Path, lora: bool) -> None:
    one, two = (
        Case(run=str(tmp_path / name), source=str(tiny_model), backend=name, lora=lora) for name in ("ddp", "fsdp2")
    )
    run_case(one, World())
    together([two], tmp_path)
    alone, shared = (folder_of(Path(case.run), 5) for case in (one, two))
    assert damage(shared) is None
    print(difference(alone, shared))
    assert difference(alone, shared) < TOLERANCE
    assert_same_folder(alone, shared)
