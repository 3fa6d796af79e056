"""Tiny random models, batches and trajectories: everything the real code needs, small enough for a test.

The tokenizer has one token a byte and a chat template; the models are random, with weights large enough that their
distributions are far from uniform, so that a wrong attention mask or position shows in the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmrl.batch import Batch
from llmrl.settings.recipe import TrainConfig
from llmrl.train.collate import collate
from llmrl.train.models import Models
from llmrl.train.world import World
from llmrl.types import Media, Prompt, Score, Status, Trajectory

PAD, BOS, EOS = "<|pad|>", "<|user|>", "<|end|>"
SPECIAL = [PAD, BOS, EOS, "<|assistant|>", "<|system|>"]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, five special tokens, a chat template; `<|end|>` ends a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(SPECIAL + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=SPECIAL[3:]
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def random_model(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A causal LM of `kind` (a transformers model_type) with random weights, biases and norms, in eval mode."""
    config = AutoConfig.for_model(
        kind, **{**SIZES, "vocab_size": len(SPECIAL) + 256, "num_key_value_heads": 1, **changes}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                else:
                    parameter.copy_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def save_model(folder: Path, model: Any) -> Path:
    """A Hugging Face folder with the tiny tokenizer."""
    model.generation_config.eos_token_id = SIZES["eos_token_id"]
    model.generation_config.pad_token_id = SIZES["pad_token_id"]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_vlm(folder: Path, *, seed: int = 0) -> Path:
    """A random vision-language model around a random Llama; an image is 4 tokens between three others."""
    from transformers import AutoModelForImageTextToText

    from llmrl.policy.build_vlm import Eyes, build_vlm

    build_vlm(
        save_model(folder / "text", random_model(seed=seed)), folder / "vlm", seed=seed,
        eyes=Eyes(image=32, patch=8, scale=2, width=64, layers=2, heads=2),
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder / "vlm")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_model" in name or "connector" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder / "vlm")
    return folder / "vlm"


def picture(seed: int, size: tuple[int, int] = (24, 40)) -> Media:
    """An image of noise, height and width `size`."""
    return Media.image(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def trajectory(
    prompt: str | tuple[int, ...],
    turns: list[list[int]],
    *,
    group: str = "",
    sample: int = 0,
    reward: float | None = 0.0,
    status: Status | None = None,
    logprob: float = -1.0,
) -> Trajectory:
    """A trajectory whose `turns` alternate between what the policy sampled and what an environment replied."""
    tokens = tuple(tiny_tokenizer()(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
    row, mask, step = list(tokens), [False] * len(tokens), [-1] * len(tokens)
    for number, turn in enumerate(turns):
        sampled = number % 2 == 0
        row += turn
        mask += [sampled] * len(turn)
        step += [number // 2 if sampled else -1] * len(turn)
    steps = (len(turns) + 1) // 2
    scores = tuple(Score(value=reward if number == steps - 1 else 0.0) for number in range(steps))
    return Trajectory(
        prompt=Prompt(id=group or str(tokens), tokens=tokens, text=str(prompt)),
        tokens=row,
        mask=mask,
        logprobs=[logprob if sampled else 0.0 for sampled in mask],
        step=step,
        text="",
        status=status or Status.done(),
        sample=sample,
        scores=scores,
    )


def random_trajectories(
    seed: int, *, groups: tuple[int, ...] = (4, 3, 1), longest_prompt: int = 9, longest: int = 8, vocabulary: int = 261,
    branching: bool = False,
) -> list[Trajectory]:  # fmt: skip
    """Groups of the given sizes with prompts and completions of random lengths and random rewards.

    The first row of each group of two or more has an environment's reply in the middle, the second is one token long.
    `branching` prompts begin with some of the tokens of the one before; every third is nothing but that.
    """
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    def tokens(count: int) -> list[int]:
        return torch.randint(5, vocabulary, (count,), generator=draw).tolist()

    found = []
    prompt: tuple[int, ...] = ()
    for group, size in enumerate(groups):
        stem = prompt[: number(1, len(prompt))] if branching and group else ()
        prompt = stem if stem and group % 3 == 2 else (*stem, *tokens(number(2, longest_prompt)))
        for sample in range(size):
            turns = [tokens(number(2, longest))]
            if sample == 0 and size > 1:
                turns = [tokens(3), tokens(2), tokens(2)]
            elif sample == 1:
                turns = [tokens(1)]
            reward = float(torch.randn((), generator=draw))
            found.append(trajectory(prompt, turns, group=f"g{group}", sample=sample, reward=reward))
    return found


def random_batch(seed: int, *, shuffled: bool = True, **more: Any) -> Batch:
    """`random_trajectories` collated, with one more row that is not usable (its mask is empty); rows are shuffled."""
    rows = random_trajectories(seed, **more)
    rows.append(replace(rows[0], sample=99, status=Status.error("made to fail")))
    batch = collate(rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return batch.select(order) if shuffled else batch


def tiny_models(
    logprob_model: Any,
    updater: Any,
    *,
    config: Any = None,
    critic_trainer: Any = None,
    reference: Any = None,
    **more: Any,
) -> Models:
    """What `learn` works on, of parts that a test has made; one process unless `world` is given."""
    return Models(
        policy=None,  # type: ignore[arg-type]  # nothing here exports it
        logprob_model=logprob_model,
        optimizer=updater,
        shards=updater,
        config=config or TrainConfig(steps=10),
        critic_trainer=critic_trainer,
        reference=reference,
        **{"world": World(), "seed": 0, **more},
    )
