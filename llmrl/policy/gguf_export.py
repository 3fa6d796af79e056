"""A Hugging Face folder -> one GGUF file for llama.cpp and what is built on it, by the `gguf` package.

Layers are named by gguf's own table. Llama's query and key rows are put in the order of llama.cpp's rotary embedding,
which pairs neighbours where transformers pairs halves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrl.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["f32", "f16", "bf16", "q8_0"]
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # by transformers' model_type
PRETOKENIZERS = {49152: "smollm", 128256: "llama-bpe"}  # by vocabulary size; qwen's by its model_type


def hf_to_gguf(source: Path, target: Path, *, precision: Precision = "f16", name: str = "") -> list[str]:
    """Write the model of `source` to the file `target`; returns what a user should know.

    Norms and biases stay in float32. Raises ConfigError for an architecture or a tokenizer that is not converted, and
    without the gguf package.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("export --to gguf needs the gguf package: pip install 'llmrl[gguf]'") from error
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    arch = ARCHITECTURES.get(config.model_type)
    if arch is None:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"{source} is a {config.model_type} model; export --to gguf knows {known}, others are "
                          "converted by llama.cpp's convert_hf_to_gguf.py")  # fmt: skip
    writer = gguf.GGUFWriter(target, arch)
    _write_config(writer, config, name or source.name)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    notes = _write_tokenizer(writer, tokenizer, source, config, gguf)
    number = next(item.value for item in gguf.MODEL_ARCH if gguf.MODEL_ARCH_NAMES[item] == arch)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(number), config.num_hidden_layers)
    kinds = {key: getattr(gguf.GGMLQuantizationType, key.upper()) for key in ("f32", precision)}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for tensor in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
                if found is None:
                    raise ConfigError(f"{source}: gguf has no name for the weight {tensor}")
                values = tensors.get_tensor(tensor).to(torch.float32).numpy()
                if arch == "llama" and tensor.endswith(
                    ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
                ):
                    heads = config.num_attention_heads if ".q_proj." in tensor else config.num_key_value_heads
                    values = _neighbours(values, heads)
                kind = kinds["f32" if values.ndim == 1 else precision]
                writer.add_tensor(found, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return notes


def _neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows with its two halves interleaved."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write_config(writer: Any, config: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"export --to gguf does not convert rope_type={rope['rope_type']}; use llama.cpp's converter")
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))


def _write_tokenizer(writer: Any, tokenizer: Any, source: Path, config: Any, gguf: Any) -> list[str]:
    stored = json.loads((source / "tokenizer.json").read_text()) if (source / "tokenizer.json").is_file() else {}
    model = stored.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ConfigError(f"{source}: export --to gguf converts byte-level BPE tokenizers; use llama.cpp's converter")
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids) | {t["id"] for t in stored.get("added_tokens", []) if t.get("special")}
    added = {t["id"] for t in stored.get("added_tokens", [])}
    kinds = gguf.TokenType
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([
        kinds.UNUSED if n not in by_id else kinds.CONTROL if n in special else kinds.USER_DEFINED if n in added
        else kinds.NORMAL for n in range(config.vocab_size)
    ])  # fmt: skip
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    if merges:
        writer.add_token_merges(merges)
    for what in ("bos", "eos", "pad"):
        if (number := getattr(tokenizer, f"{what}_token_id")) is not None:
            getattr(writer, f"add_{what}_token_id")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    known = "qwen2" if config.model_type.startswith("qwen") else PRETOKENIZERS.get(config.vocab_size)
    writer.add_tokenizer_pre(known or "default")
    if known:
        return []
    return [
        "how llama.cpp splits text before BPE is not known for this tokenizer: it is stored as `default`; compare tokens"
    ]
