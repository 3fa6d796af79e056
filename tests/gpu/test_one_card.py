"""What needs one NVIDIA card, as `make test-gpu` runs it: no network, tiny models, minutes. Not run on a card yet.

Each test compares the card with the CPU, or one path with another, within a stated tolerance.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import random_batch, random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
]
ROOT = Path(__file__).parents[2]
CARD = "cuda"
CLOSE = {torch.float32: 2e-3, torch.bfloat16: 8e-2}  # nats; TF32 is off in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_flex_and_plain_agree_on_the_card_and_with_the_cpu(dtype):
    from llmrl.policy.forward import forward

    batch = random_batch(3)
    with torch.no_grad():
        expected = forward(random_model(), batch, mode="plain").logprobs
    model = random_model(dtype=dtype).to(CARD)
    for mode in ("plain", "packed", "flex"):
        with torch.no_grad():
            found = forward(model, batch, mode=mode).logprobs.float().cpu()
        gap = (found - expected)[batch.mask].abs().max().item()
        assert gap < CLOSE[dtype], (mode, gap)


def test_gradients_of_a_step_are_those_of_the_cpu():
    from llmrl.policy.forward import forward

    batch, found = random_batch(3), {}
    for device in ("cpu", CARD):
        model = random_model().to(device)
        forward(model, batch, mode="packed").logprobs[batch.mask.to(device)].sum().backward()
        found[device] = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    gap = (found[CARD] - found["cpu"]).norm() / found["cpu"].norm()
    assert gap < 1e-3, gap


def test_the_native_engine_says_on_the_card_what_the_reference_says(tiny_model):
    from llmrl.rollout.build import build_engine
    from llmrl.rollout.engine import EngineSettings
    from llmrl.types import Request, Sampling

    requests = [Request(tokens=(1, 40 + i, 50), sampling=Sampling(max_tokens=8, temperature=0.0)) for i in range(6)]
    said = []
    for kind in ("native", "hf"):
        engine = build_engine(EngineSettings(kind=kind, model=str(tiny_model), dtype="float32", max_length=64))
        said.append([completion.tokens for completion in engine.generate(requests)])
        engine.close()
    assert said[0] == said[1]


def test_nccl_works_with_one_rank(tmp_path):
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        tensor = torch.arange(4.0, device=CARD)
        torch.distributed.all_reduce(tensor)
        assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    finally:
        torch.distributed.destroy_process_group()


def llmrl(*arguments: str) -> str:
    run = [sys.executable, "-m", "llmrl", *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240).stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, tiny_model, dtype):
    small = (
        "recipes/arithmetic/grpo.yaml", f"model.path={tiny_model}", f"model.dtype={dtype}", "rollout.engine=native",
        f"runs_dir={tmp_path}", "rollout.prompts_per_step=2", "eval.data.n=4", "train.save_every=1",
    )  # fmt: skip
    llmrl("train", *small, "name=whole", "train.steps=3")
    llmrl("train", *small, "name=cut", "train.steps=1")
    llmrl("train", *small, "name=cut", "train.steps=3", "--resume")
    digests = [re.findall(r"[0-9a-f]{16,}", llmrl("hash", str(tmp_path / name))) for name in ("whole", "cut")]
    assert digests[0] and digests[0] == digests[1]


def test_vllm_sleeps_wakes_and_takes_new_weights(tiny_model):
    pytest.importorskip("vllm", reason="no vllm: pip install 'llmrl[gpu]'")
    from llmrl.rollout.build import build_engine
    from llmrl.rollout.engine import EngineSettings
    from llmrl.types import Request, Sampling

    request = [Request(tokens=(1, 44, 50), sampling=Sampling(max_tokens=8, temperature=0.0))]
    settings = EngineSettings(
        kind="vllm", model=str(tiny_model), max_length=64, gpu_memory=0.2, eager=False, sleep=True
    )
    engine = build_engine(settings)
    try:
        before = engine.generate(request)[0].tokens
        weights = random_model(dtype=torch.bfloat16).state_dict()
        engine.rest()
        engine.load(weights.items(), version=1)
        assert engine.generate(request)[0].tokens == before  # the same weights again
    finally:
        engine.close()
