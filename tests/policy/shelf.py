"""A tiny model as a catalogue would hold it: written as GGUF, packed in a wheel, on a shelf that stands for an index."""

import base64
import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from llmrl.policy.catalog import CatalogModel

HIDDEN, LAYERS, HEADS, FFN, CONTEXT = 32, 2, 2, 64, 256
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ROOT = Path(__file__).parents[2]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A random Llama in float32; returns its arrays by GGUF name."""
    import gguf
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}.weight": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (FFN, HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, FFN)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def write_wheel(folder: Path, gguf: bytes, version: str = "0.1") -> Path:
    files = {
        "tiny_model/model.gguf": gguf,
        f"tiny_model-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tiny-model\nVersion: {version}\n"
        "Requires-Dist: a-package-that-does-not-exist\n".encode(),
        f"tiny_model-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    record += f"tiny_model-{version}.dist-info/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"tiny_model-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"tiny_model-{version}.dist-info/RECORD", record)
    return wheel


@dataclasses.dataclass(frozen=True)
class Shelf:
    """A package index that is a folder, an empty cache, and the catalog entry of the tiny model."""

    index: Path
    cache: Path
    wheel: Path
    model: CatalogModel
    arrays: dict[str, np.ndarray]

    @property
    def folder(self) -> Path:
        return self.cache / "models" / "tiny"

    def leftovers(self) -> list[str]:
        return [path.name for path in self.cache.rglob("*") if "tmp" in path.name or path.suffix == ".gguf"]

    def run(self, code: str) -> subprocess.Popen[str]:
        """`code` in another process that has the same catalog entry."""
        entry = f"MODELS['tiny'] = catalog.CatalogModel(**{dataclasses.asdict(self.model)!r})"
        lines = [
            "import os, signal, sys",
            "from llmrl.policy import catalog, gguf",
            "MODELS = catalog.MODELS",
            entry,
            code,
        ]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", "\n".join(lines)], env=env, stdout=subprocess.PIPE, text=True)
