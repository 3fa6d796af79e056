"""GGUF -> a plain Hugging Face folder that transformers, peft and vLLM open as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def gguf_to_hf(source: Path, target: Path) -> None:
    """De-quantise the Llama-architecture GGUF file `source` into `target` (bf16 safetensors, tokenizer, chat template).

    The result is an ordinary `LlamaForCausalLM`: transformers' own GGUF loading leaves a `quantization_config` behind
    that would make every later loader treat the folder as quantised. Raises ValueError for another architecture or for
    weights that do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config
    if config.model_type != "llama":
        raise ValueError(f"{source.name} holds a {config.model_type!r} model; only the llama architecture is converted")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(loaded.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the weights of {source.name} do not fit its own config: {error}") from error
    model.bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    _drop_keys(target / "config.json", "_model_name_or_path", "name_or_path")
    _drop_keys(target / "tokenizer_config.json", "is_local", "local_files_only", "name_or_path")


def _drop_keys(path: Path, *keys: str) -> None:
    """Remove what only says where the file was made."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in content.items() if name not in keys}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
