"""Opening a causal LM so that trainer and sampler agree about it: no dropout, and attention that does all it says.

A model may be stored with dropout, for training from scratch. Reinforcement learning compares probabilities that were
computed at different times, so a random part of them would be taken for a change of the policy: it is set to 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmrl.errors import ConfigError
from llmrl.memory import keep_few_kernels
from llmrl.policy.vision import load_lm


def open_causal_lm(source: str | Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """(the model of a folder or hub id, what a user should know about how it was loaded).

    Raises ConfigError for a model that keeps dropout whatever its configuration says.
    """
    from transformers import AutoConfig

    keep_few_kernels()
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    notes = [without_dropout(config, str(source))]
    how: dict[str, Any] = {"config": config}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        how["attn_implementation"] = "eager"  # the faster ones leave the cap on attention scores out
    model = load_lm(source, dtype=dtype, **how)
    if left := [name for name, module in model.named_modules() if _dropout(module) > 0]:
        raise ConfigError(f"{source} trains with dropout ({left[0]} and others), which its config.json cannot turn off")
    notes.append(_savable(model, str(source)))
    return model, [note for note in notes if note]


def _savable(model: Any, source: str) -> str:
    """Make the generation config one that transformers agrees to save; what was changed, in words."""
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True  # sampling settings without it are refused when a checkpoint is written
        return f"the generation config of {source} has sampling settings without do_sample: do_sample is set"
    return ""


def ending_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which a completion ends: those of the model's generation config, and the tokenizer's own."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(end) for end in [*listed, tokenizer.eos_token_id] if end is not None}


def turn_note(model: Any, tokenizer: Any) -> str:
    """A warning if the chat template ends an answer with a token at which no completion ends, or an empty text.

    A base model often has the template of its chat model and an end of its own; it then writes the user's next turn too.
    """
    from jinja2 import TemplateError

    marker = "\u2063answer\u2063"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    if not tokenizer.chat_template:
        return ""
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError):
        return ""  # prompts are rendered soon, and say what is wrong
    after = tokenizer(text.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
    ends = ending_tokens(model, tokenizer)
    special = next((token for token in after if token in tokenizer.all_special_ids), None)
    if special is None or ends & set(after):
        return ""
    name = tokenizer.convert_ids_to_tokens(special)
    return (
        f"the chat template ends a turn with {name}, at which completions do not end "
        f"({', '.join(tokenizer.convert_ids_to_tokens(sorted(ends)))} end them); set rollout.stop=['{name}'], or the "
        "tokenizer's eos_token"
    )


def without_dropout(config: Any, source: str) -> str:
    """Set every dropout of a configuration to 0; what was changed, in words, or an empty text."""
    changed = []
    parts = [config, *(value for value in vars(config).values() if hasattr(value, "to_diff_dict"))]
    for part in parts:
        for name, value in vars(part).items():
            chance = isinstance(value, float | int) and not isinstance(value, bool) and 0 < value <= 1
            if chance and any(word in name for word in ("dropout", "pdrop", "layerdrop")):
                setattr(part, name, 0.0)
                changed.append(f"{name} {value:g}")
    if not changed:
        return ""
    return f"{source} is stored with dropout ({', '.join(changed)}): set to 0, as sampler and trainer must agree"


def _dropout(module: nn.Module) -> float:
    """The module's own dropout: many attentions keep theirs as a number and call the function."""
    numbers = (getattr(module, name, 0.0) for name in ("attention_dropout", "hidden_dropout", "layerdrop", "dropout"))
    own = [module.p] if isinstance(module, nn.Dropout) else [n for n in numbers if isinstance(n, float)]
    return float(max(own, default=0.0))
