"""Two processes over gloo learn what one does."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llmrl.train.world import World
from tests.torchrun import torchrun
from tests.train.rank import ALGORITHMS, learned


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("tests.train.rank", folder, timeout=300)
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
