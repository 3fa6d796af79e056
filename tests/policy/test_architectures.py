"""The table of architectures in llmrl/policy/README.md, on tiny random weights: which forward and engine each gets.

Sampled log-probabilities of the engine and those of the trainer's forward must agree to a few roundings of float32.
Windows are shorter than the rows, caps and scales far from 1, dropout is on in the stored model.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llmrl.policy
from llmrl.policy.forward import check_forward, forward, short_window
from llmrl.policy.fused import FusedDecoder
from llmrl.policy.model import load_policy
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.hf import HFEngine
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.roll import single_turn
from llmrl.settings.model import ModelConfig
from llmrl.train.collate import collate
from llmrl.types import Prompt, Request, Sampling, Score
from tests.tiny import random_batch, random_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries talk about tiny configurations
WINDOW = {"sliding_window": 6}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
MODELS = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 32, **WINDOW},
    "gemma3_text": {"query_pre_attn_scalar": 32, **WINDOW},
    "phi": {"resid_pdrop": 0.1},
    "phi3": WINDOW,
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "gpt_neox": {"hidden_dropout": 0.1},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.1},
    "mixtral": LOCAL,
    "qwen2_moe": {"shared_expert_intermediate_size": 32, **EXPERTS},
    "qwen3_moe": EXPERTS,
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 4.0, **LOCAL},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **WINDOW},
    "starcoder2": {"embedding_dropout": 0.1, **WINDOW},
    "smollm3": {},
    "glm4": {},
    "exaone4": WINDOW,
    "seed_oss": {},
    "nanochat": {},
    "deepseek_v3": {
        "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32, "head_dim": 16,
    },
    "stablelm": {},
    "nemotron": {},
    "bloom": {"hidden_dropout": 0.1},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 2, "rotary_dim": 16},
    "gpt_oss": {**LOCAL, **WINDOW},
}  # fmt: skip
ROWS = [
    [cell.strip(" `") for cell in line.strip("|\n ").split("|")]
    for line in (Path(llmrl.policy.__path__[0]) / "README.md").read_text().splitlines()
    if line.startswith("| `")
]
ROWS = [row for row in ROWS if "(images)" not in row[0]]  # tests/policy/test_vision.py runs those
TABLE = {kind: (mode, engine) for kinds, mode, engine, *_ in ROWS for kind in kinds.replace("`", "").split(", ")}
REQUESTS = [
    Request(tokens=tuple(range(7 + k, 19 + k)), sampling=Sampling(max_tokens=12, temperature=1.0, seed=seed))
    for k in (0, 5)
    for seed in range(3)
]


def gap(engine, model, mode):
    """The largest difference between an engine's log-probabilities and the trainer's, nats."""
    rows = []
    for number, (request, made) in enumerate(zip(REQUESTS, engine.generate(REQUESTS), strict=True)):
        prompt = Prompt(id=str(request.tokens), tokens=request.tokens, text="")
        rows.append(replace(single_turn(prompt, made, sample=number, version=0), scores=(Score(value=0.0),)))
    batch = collate(rows)
    with torch.no_grad():
        ours = forward(model, batch, mode=mode).logprobs
    return float((ours - batch.logprobs)[batch.mask].abs().max())


def test_the_table_is_about_these_models():
    assert TABLE.keys() == MODELS.keys()


@pytest.mark.parametrize("kind", MODELS)
def test_an_architecture_gets_the_forward_and_the_engine_of_the_table(kind, tmp_path):
    source = str(save_model(tmp_path / "m", random_model(kind, **MODELS[kind])))
    policy = load_policy(ModelConfig(path="x", dtype="float32"), source=source, device=torch.device("cpu"), seed=0)
    model, batch = policy.causal_lm, random_batch(0)
    packs = check_forward(model, batch, mode="packed", tolerance=1e-3) is None and short_window(model, 64) is None
    assert check_forward(model, batch, mode="plain", tolerance=1e-3) is None
    mode = "packed" if packs else "plain"
    settings = EngineSettings(kind="native", model=source, dtype="float32", max_length=64, max_sequences=8)
    engine = NativeEngine(settings, model=model, tokenizer=policy.tokenizer) if packs else HFEngine(settings)
    assert gap(engine, model, mode) < 1e-5
    fused = FusedDecoder.of(model) is not None
    assert (mode, "native, fused" if fused else "native" if packs else "vllm, hf") == TABLE[kind]
