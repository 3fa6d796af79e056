"""Two processes over gloo learn what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmrl.train.world import World
from tests.train.rank import ALGORITHMS, learned

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.train.rank"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", ALGORITHMS)
def test_two_processes_give_the_gradients_metrics_and_weights_of_one(two, case):
    alone, metrics = learned(World(), ALGORITHMS[case])
    ranks = [load_file(two / f"{case}-{rank}.safetensors") for rank in (0, 1)]
    assert ranks[0].keys() == ranks[1].keys() == alone.keys()
    for name in alone:
        assert torch.equal(ranks[0][name], ranks[1][name]), name  # the ranks stay in step, bit for bit
    size = max(float(tensor.abs().max()) for name, tensor in alone.items() if name.startswith("grad/"))
    for name, tensor in alone.items():
        if name.startswith("grad/"):
            assert float((ranks[0][name] - tensor).abs().max()) < 1e-4 * size, name
        else:
            torch.testing.assert_close(ranks[0][name], tensor, rtol=0, atol=5e-4)
    for rank in (0, 1):
        seen = json.loads((two / f"{case}-{rank}.json").read_text())
        assert seen == pytest.approx(metrics, rel=1e-4, abs=1e-6)
