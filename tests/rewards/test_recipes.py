"""The recipes of the verifiers train: two steps each, on a real model and real data."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from llmrl.settings.load import load_recipe

DATA = Path(os.environ.get("LLMRL_DATA", Path(__file__).parents[3] / "shared" / "data"))
MODEL = Path(os.environ.get("LLMRL_MODEL", ""))
ROOT = Path(__file__).parents[2]
LOCAL = {
    "gsm8k": [
        "data.source={data}/gsm8k/train.jsonl",
        "data.subset=null",
        "data.columns={{prompt: problem}}",
        "eval.data.source={data}/gsm8k/test.jsonl",
        "eval.data.columns={{prompt: problem}}",
    ],
    "math": ["data.source={data}/math/train.jsonl", "eval.data.source={data}/math/math500.jsonl"],
    "countdown": [
        "data.source={data}/countdown/mid3.jsonl",
        "data.columns={{numbers: numbers, answer: target}}",
    ],
    "mbpp": ["data.source={data}/mbpp/mbpp.jsonl", "data.subset=null", "eval.data.split=null"],
}
SMALL = [
    "train.steps=2", "train.warmup_steps=0", "train.save_every=2", "eval.every=0", "eval.data.n=2", "data.limit=50",
    "data.max_prompt_tokens=256", "model.max_length=512", "rollout.prompts_per_step=2", "rollout.group_size=2",
    "rollout.max_tokens=16", "rollout.kv_cache_gib=1", "rollout.dynamic_sampling=null",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_two_steps_of_a_recipe(tmp_path, name):
    from llmrl.compose import resolve
    from llmrl.start import run

    if not DATA.is_dir() or not (MODEL / "config.json").is_file():
        pytest.skip("needs the data (LLMRL_DATA) and a model folder (LLMRL_MODEL)")
    local = [text.format(data=DATA) for text in LOCAL[name]]
    changes = [*local, *SMALL, f"model.path={MODEL}", f"runs_dir={tmp_path}", f"name={name}"]
    recipe = load_recipe(ROOT / "recipes" / name / "grpo.yaml", changes)
    outcome = run(recipe, resolve(recipe), console=Console(file=io.StringIO()))
    assert outcome.exit_code == 0
    rows = [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert len(steps) == 2
    assert all(row["reward/errored"] == 0 and row["flag/answer_stuffing"] >= 0 for row in steps)


@pytest.mark.parametrize("name", LOCAL)
def test_the_default_source_is_on_the_hub(name):
    source = load_recipe(ROOT / "recipes" / name / "grpo.yaml").data.source
    assert source.count("/") == 1 and not source.endswith(".jsonl")
