"""A model whose embedding has too few rows for its tokenizer -> a folder with a model that has enough.

Trainer, engines and servers all open the same folder, so the model is grown once and kept in llmrl's cache. A new row is
the mean of the old ones: logits of new tokens start at the mean of all, which disturbs the model least.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from llmrl.cache import cache_root


def resized(source: str, *, cache_dir: Path | str | None = None) -> str:
    """`source` itself if its embedding has a row for every token, else the folder of the grown model.

    `source` is a local folder. The stored precision is kept.
    """
    from filelock import FileLock
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) <= config.get_text_config().vocab_size:
        return source
    models = cache_root(cache_dir) / "resized"
    models.mkdir(parents=True, exist_ok=True)
    folder = models / _key(Path(source), len(tokenizer))
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            temporary = folder.with_name(f".tmp-{folder.name}")
            shutil.rmtree(temporary, ignore_errors=True)
            grown(source, len(tokenizer)).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            temporary.rename(folder)
    return str(folder)


def grown(source: str, tokens: int) -> Any:
    """The causal LM of `source` with embeddings for `tokens` tokens, tied or not as before."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    parameters = {layer.weight for layer in layers} | {bias for layer in layers if (bias := _bias(layer)) is not None}
    with torch.no_grad():
        for parameter in parameters:
            parameter[before:] = parameter[:before].float().mean(0).to(parameter.dtype)
    return model


def _bias(layer: Any) -> torch.Tensor | None:
    return getattr(layer, "bias", None)


def _key(folder: Path, tokens: int) -> str:
    """Changes whenever a file of the folder does."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    text = f"{folder.resolve()} {tokens} {files}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
