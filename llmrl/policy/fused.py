"""The layers of a Llama-type model as one function of few operations, for decoding on a CPU.

With few rows a decoding step spends more time in many small operations than in its products. Here the three
projections of attention are one product, residual sums and the gate are done inside the products that feed them, and
both rotations are one. The numbers differ from the model's own by rounding only; fewer are rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.policy.decode import KVCache, decode
from llmrl.policy.prepacked import can_prepack
from llmrl.policy.vision import text_config

# Layers that compute exactly what `FusedDecoder` does: bias or none, head norms or none, a SiLU gate.
LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Root mean square norm over the last dimension, in float32, rounded, then weighted, as the models do it."""
        wide = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
        scale = squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * scale).to(x.dtype).mul_(self.weight)


class _Product:
    """x W^T + b with what follows it: nothing, SiLU, or a sum or product with another tensor."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        self._bias = None if biases[0] is None else torch.cat([bias for bias in biases if bias is not None])
        self._packed = can_prepack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self._packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(x, "none") if self._packed else self._plain(x)

    def silu(self, x: Tensor) -> Tensor:
        return self._unary(x, "swish") if self._packed else nn.functional.silu(self._plain(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add") if self._packed else self._plain(x) + other

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul") if self._packed else self._plain(x) * other

    def _plain(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._weight, self._bias)

    def _unary(self, x: Tensor, what: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, what, [], "")
        return out

    def _binary(self, x: Tensor, other: Tensor, what: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, what)
        return out


class _Layer:
    """One layer's weights in the form in which they are used."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before = _norm(layer.input_layernorm)
        self.after = _norm(layer.post_attention_layernorm)
        self.scale = float(attention.scaling)
        self.window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        self.heads = _heads(attention.q_proj, attention), _heads(attention.k_proj, attention)
        self.head_norms = [_norm(getattr(attention, name)) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.into = _product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _product(attention.o_proj)
        self.gate, self.up, self.down = (_product(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))


class FusedDecoder:
    """A decoding step of `model` on the weights that it has now; made anew when they change.

    Calling it is calling `model.base_model(..., decoding=cache)`: newest tokens [N] and their positions -> hidden [N, D].
    """

    def __init__(self, model: Any) -> None:
        base = model.get_decoder()
        self._embed, self._rotary, self._norm = base.embed_tokens, base.rotary_emb, _norm(base.norm)
        self._layers = [_Layer(layer) for layer in base.layers]

    @classmethod
    def of(cls, model: Any) -> FusedDecoder | None:
        """None for a model whose layers are not known to be of this kind, or are wrapped (by LoRA, by a backend)."""
        base = model.get_decoder()
        layers = getattr(base, "layers", ())
        known = bool(layers) and all(_known(layer) for layer in layers)
        return cls(model) if known and text_config(model).hidden_act == "silu" else None

    def __call__(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        x = self._embed(tokens)
        cos, sin = (part[0, :, None] for part in self._rotary(x, positions[None]))  # [N, 1, D]
        half = cos.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for number, layer in enumerate(self._layers):
            attended = _attend(layer, layer.before(x), cos, sin, cache, number)
            x = layer.out.plus(attended, x)
            hidden = layer.after(x)
            x = layer.down.plus(layer.up.times(hidden, layer.gate.silu(hidden)), x)
        return self._norm(x)


def _attend(layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, number: int) -> Tensor:
    """[N, D] -> [N, heads * width]."""
    rows, width = len(x), cos.shape[-1]
    heads, kv_heads = layer.heads
    both = layer.into(x).view(rows, heads + 2 * kv_heads, width)
    turned, value = both[:, : heads + kv_heads], both[:, heads + kv_heads :]
    if layer.head_norms:
        norms = zip(layer.head_norms, turned.split([heads, kv_heads], dim=1), strict=True)
        turned = torch.cat([norm(part) for norm, part in norms], dim=1)
    half = width // 2
    turned = turned * cos + torch.cat([turned[..., half:], turned[..., :half]], dim=-1).mul_(sin)
    query, key = turned[:, :heads], turned[:, heads:]
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    out = decode(query, key, value, cache, number, scale=layer.scale, window=layer.window)
    return out.transpose(0, 1).reshape(rows, heads * width)


def _known(layer: Any) -> bool:
    if type(layer).__name__ not in LAYERS or not type(layer).__module__.startswith("transformers.models."):
        return False
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    parts = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    return all(type(parts.get(name)) is nn.Linear for name in names)


def _heads(projection: nn.Linear, attention: Any) -> int:
    return projection.out_features // int(attention.head_dim)


def _norm(module: Any) -> _Norm:
    return _Norm(module.weight.detach(), float(module.variance_epsilon))


def _product(*modules: nn.Linear) -> _Product:
    biases = [None if module.bias is None else module.bias.detach() for module in modules]
    return _Product([module.weight.detach() for module in modules], biases)
