"""Small language models for comparisons: first weights, and a vocabulary of what their task says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import SIZES, SPECIAL, save_model, tiny_tokenizer


def vocabulary(texts: Iterable[str], *, words: int) -> Any:
    """The tests' tokenizer with at most `words` tokens: bytes and what is frequent in `texts`; a digit stands alone."""
    tokenizer = tiny_tokenizer()
    core, pieces = tokenizer.backend_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pieces])
    learnt = trainers.BpeTrainer(
        vocab_size=words, special_tokens=SPECIAL, initial_alphabet=pieces.alphabet(), show_progress=False
    )
    core.train_from_iterator(texts, learnt)
    return tokenizer


def small_llama(folder: Path, texts: Iterable[str], *, words: int, width: int, layers: int) -> Path:
    """Write a Llama of that width and depth, with heads of 32, to `folder`."""
    tokenizer = vocabulary(texts, words=words)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32, "max_position_embeddings": 512}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**SIZES, **sizes, **heads}, vocab_size=len(tokenizer))
    save_model(folder, AutoModelForCausalLM.from_config(config))
    tokenizer.save_pretrained(folder)
    return folder
