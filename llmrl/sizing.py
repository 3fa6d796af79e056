"""What a recipe takes on a machine: memory of each process, and seconds of a step predicted from measured runs.

The one estimate behind `llmrl plan`, `llmrl plan --scale` and `llmrl launch`. Memory counts the large parts only, from the
shapes in a model's config.json. Training holds weights in the model's precision, and float32 master weights, gradients and
two Adam moments of what trains. The backward pass of a Llama-like layer keeps, for each token, in numbers of `width` bytes:
5 hidden (inputs of the projections, queries, outputs of the attention) + keys and values + 4 intermediate, and 2 hidden
twice for the two norms (once in float32). Packed attention also keeps its weights; flex does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmrl.batch import Needs
from llmrl.cache import cache_root
from llmrl.launcher.topology import Topology
from llmrl.memory import CHUNK_ELEMENTS
from llmrl.policy.catalog import MADE, MODELS
from llmrl.settings.model import LoraConfig, OutcomeCriticConfig
from llmrl.settings.recipe import Recipe

GIB = 2**30
BYTES = {"bfloat16": 2, "float32": 4, "auto": 2}  # auto, where it was not settled: a GPU of some other machine
SHAPES = Path(__file__).parent / "launch" / "shapes.json"  # of models that need not be on this machine
NEEDED = {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"}
EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
# What each back-end shares out among all processes.
SHARED = {
    "ddp": frozenset[str](),
    "zero2": frozenset({"gradients", "masters and Adam"}),
    "zero3": frozenset({"weights", "gradients", "masters and Adam"}),
    "fsdp2": frozenset({"weights", "gradients", "masters and Adam"}),
}
PROCESS_GIB = {"gpu": 1.5, "cpu": 0.8}  # CUDA context and NCCL's buffers; Python with torch
ENGINE_GIB = {"gpu": 2.0, "cpu": 1.5}  # an engine's process beyond weights and KV cache
BUCKET_GIB = 0.125  # gathered weights on their way to an engine


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What memory depends on. `kv_width` is the numbers of key and value together, of one layer and token."""

    parameters: int
    layers: int
    hidden: int
    heads: int
    kv_width: int
    intermediate: int
    vocabulary: int


def model_size(source: str) -> ModelSize | None:
    """Sizes of a catalogue name, a local folder, or a hub id that is cached or in launch/shapes.json; None for others.

    The network is not asked, and transformers is not imported: that takes seconds, and this answers while a user waits.
    """
    file = (cache_root() / "models" if source in MODELS or source in MADE else Path()) / source / "config.json"
    if not file.is_file() and source.count("/") == 1 and not source.startswith((".", "/", "~")):
        from huggingface_hub import try_to_load_from_cache  # takes as long as all the rest

        cached = try_to_load_from_cache(source, "config.json")
        file = Path(cached) if isinstance(cached, str) else file
    if file.is_file():
        return size_of(json.loads(file.read_text()))
    name = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M"}.get(source, source)
    plain = name.removesuffix("-Instruct").replace("Qwen2.5-Coder-", "Qwen2.5-").replace("Qwen2.5-Math-", "Qwen2.5-")
    shape = json.loads(SHAPES.read_text()).get(plain)
    return size_of(shape) if shape is not None else None


def size_of(config: Mapping[str, Any]) -> ModelSize | None:
    """Sizes of the Llama-like model (the text part, for one that sees images) with this config.json; None for others."""
    config = config.get("text_config") or config
    if not set(config) >= NEEDED or EXPERTS & set(config):
        return None
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, intermediate = config["num_attention_heads"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // heads
    kv_width = 2 * (config.get("num_key_value_heads") or heads) * head
    biases = head * heads + kv_width if config.get("attention_bias", "qwen2" in config.get("model_type", "")) else 0
    layer = hidden * (2 * head * heads + kv_width) + biases + 3 * hidden * intermediate + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return ModelSize(
        parameters=layers * layer + embeddings + hidden, layers=layers, hidden=hidden, heads=heads, kv_width=kv_width,
        intermediate=intermediate, vocabulary=vocabulary,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes by part on one device (on CPUs: of one process).

    `kept` stays all the time, `passing` is there while the policy trains, and so is `engine` unless it sleeps meanwhile.
    `capacity` is None if it is not known; `kv_tokens` fit the engine's cache, `kv_wanted` are what its requests can need
    at once, `longest` is one request.
    """

    kept: Mapping[str, int]
    passing: Mapping[str, int]
    engine: Mapping[str, int]
    sleeps: bool
    capacity: int | None
    kv_tokens: int
    kv_wanted: int
    longest: int

    @property
    def parts(self) -> dict[str, int]:
        return {**self.kept, **self.passing, **self.engine}

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        passing, engine = sum(self.passing.values()), sum(self.engine.values())
        return sum(self.kept.values()) + (max(passing, engine) if self.sleeps else passing + engine)

    @property
    def fits(self) -> bool:
        """Whether it fits, and the cache holds at least one request of full length. True if the capacity is unknown."""
        enough = not self.engine or self.kv_tokens >= self.longest
        return self.capacity is None or (self.total <= self.capacity and enough)


def footprint(
    recipe: Recipe,
    size: ModelSize,
    chosen: Topology,
    needs: Needs,
    *,
    capacity: int | None = None,
    critic: ModelSize | None = None,
    outcome_critic: ModelSize | None = None,
    partners: Mapping[str, ModelSize] | None = None,
) -> Footprint:
    """What each device of `chosen` holds. `capacity` is a device's memory in bytes (on CPUs: one process's share);
    `critic`, `outcome_critic` and `partners` (by name) are the sizes of separate ones that are not as large as the policy.
    """
    width, world = BYTES[recipe.model.dtype], chosen.world
    kind = "cpu" if chosen.on_cpu else "gpu"
    kept = _states(recipe, size, recipe.model.lora, SHARED[chosen.backend], world) | {
        "process": int(PROCESS_GIB[kind] * GIB)
    }
    if "weights" in SHARED[chosen.backend] and world > 1:
        kept["weights gathered for a layer or the engine"] = _gathered(size, width)
    if needs.ref_logprobs and (copy := _reference(recipe, size, width)):
        kept["reference model"] = copy
    passing = _activations(recipe, size, width=width, on_cpu=chosen.on_cpu)
    judges: dict[str, tuple[ModelSize, LoraConfig | None]] = {}
    if needs.values and recipe.critic is not None and recipe.critic.kind == "separate":
        judges["value model"] = critic or size, recipe.critic.lora
    asked = recipe.outcome_critic or (OutcomeCriticConfig() if needs.token_scores else None)
    if asked is not None and asked.kind == "separate":
        judges["outcome critic"] = outcome_critic or size, asked.lora
    for name, (own_size, lora) in judges.items():
        cut = SHARED["ddp" if chosen.backend == "ddp" else "fsdp2"]  # FSDP2 shares it out, whatever shares the policy
        kept[name] = sum(_states(recipe, own_size, lora, cut, world).values())
        own = _activations(recipe, own_size, width=width, on_cpu=chosen.on_cpu)
        passing[f"activations of the {name}"] = sum(own.values())
    wanted = -(-recipe.rollout.prompts_per_step * recipe.rollout.group_size // world)
    wanted = min(wanted, recipe.rollout.max_sequences) * recipe.model.max_length
    per_token = size.layers * size.kv_width * width
    for name, partner in recipe.engines.items():
        if partner.loaded:
            own_size = (partners or {}).get(name, size)
            cache = min(wanted, partner.max_sequences * recipe.model.max_length) * own_size.layers * own_size.kv_width
            beyond = int(ENGINE_GIB[kind] * GIB) if partner.engine == "vllm" else 0
            kept[f"engine {name}, and its cache"] = width * (own_size.parameters + cache) + beyond
    engine = _engine(recipe, width * size.parameters, wanted * per_token, kind=kind, capacity=capacity)
    return Footprint(
        kept=kept, passing=passing, engine=engine if recipe.rollout.placement == "colocated" else {},
        sleeps=recipe.rollout.sleep, capacity=capacity, kv_tokens=engine["engine: KV cache"] // per_token,
        kv_wanted=wanted, longest=recipe.model.max_length,
    )  # fmt: skip


def _states(
    recipe: Recipe, size: ModelSize, lora: LoraConfig | None, shared: frozenset[str], world: int
) -> dict[str, int]:
    trained = size.parameters if lora is None else adapter_parameters(size, lora.r)
    masters = 12 if recipe.model.dtype != "float32" or lora else 8  # float32 weights are their own masters
    whole = {
        "weights": BYTES[recipe.model.dtype] * size.parameters,
        "gradients": 4 * trained,
        "masters and Adam": masters * trained,
    }
    return {name: -(-amount // world) if name in shared else amount for name, amount in whole.items()}


def adapter_parameters(size: ModelSize, rank: int) -> int:
    """Parameters of a LoRA adapter on all linear layers, about."""
    per_layer = 2 * size.hidden + 2 * (size.hidden + size.kv_width // 2) + 3 * (size.hidden + size.intermediate)
    return size.layers * rank * (per_layer + 2 * size.hidden)


def _gathered(size: ModelSize, width: int) -> int:
    """Two layers at a time in the forward pass, or one bucket on the way to the engine, whichever is more."""
    layer = (size.parameters - 2 * size.vocabulary * size.hidden) // size.layers
    return max(2 * layer * width, size.vocabulary * size.hidden * width, int(BUCKET_GIB * GIB))


def _reference(recipe: Recipe, size: ModelSize, width: int) -> int:
    """A copy of what trains; the model without its adapter is a fixed reference already. An average is float32 too."""
    lora, kind = recipe.model.lora, recipe.reference.kind
    if lora is not None:
        return 0 if kind == "fixed" else 4 * adapter_parameters(size, lora.r)
    return (width + (4 if kind == "ema" else 0)) * size.parameters


def _activations(recipe: Recipe, size: ModelSize, *, width: int, on_cpu: bool) -> dict[str, int]:
    row = min(recipe.model.max_length, recipe.data.max_prompt_tokens + recipe.rollout.max_tokens)
    tokens = max(recipe.train.tokens_per_microbatch, row)  # one row is never cut
    layer = tokens * (width * (5 * size.hidden + size.kv_width + 4 * size.intermediate) + 2 * (4 + width) * size.hidden)
    mode = recipe.model.forward if recipe.model.forward != "auto" else ("packed" if on_cpu else "flex")
    weights = tokens * row * size.heads * width if mode == "packed" else 0
    layers = {"activations": size.layers * layer, "attention weights": size.layers * weights + 3 * weights}
    if recipe.model.gradient_checkpointing:
        inputs = size.layers * tokens * size.hidden * width
        layers = {"activations, recomputed": inputs + layer, "attention weights of one layer": 4 * weights}
    return {name: amount for name, amount in layers.items() if amount} | {"logits": 3 * 4 * CHUNK_ELEMENTS}


def _engine(recipe: Recipe, weights: int, wanted: int, *, kind: str, capacity: int | None) -> dict[str, int]:
    """Parts of one colocated engine. vLLM takes a fixed cache; the others grow theirs to what the requests need."""
    name, own = recipe.rollout.engine, int(ENGINE_GIB[kind] * GIB)
    if name == "native":  # it samples with the trainer's own weights in the trainer's process
        return {"engine: KV cache": wanted}
    if name != "vllm":
        room = wanted
    elif kind == "gpu" and capacity is not None:
        room = max(0, int(recipe.rollout.gpu_memory * capacity) - weights - own)
    else:
        room = int(recipe.rollout.kv_cache_gib * GIB)
    return {"engine: weights": weights, "engine: KV cache": room, "engine: working memory": own}


@dataclass(frozen=True, slots=True)
class Change:
    """What makes a run need less memory, and what it then needs (together with the changes before it)."""

    what: str
    total: int
    fits: bool


def advice(recipe: Recipe, chosen: Topology, estimate: Callable[[Recipe, Topology], Footprint]) -> list[Change]:
    """Changes that, one after the other, make a run fit that does not, cheapest first; those that bring nothing are left out.

    If the last one does not fit either, nothing here is enough.
    """
    now = estimate(recipe, chosen)
    found: list[Change] = []
    for propose in (_smaller_cache, _sharded, _recomputed, _smaller_microbatch, _adapter, _elsewhere, _more_devices):
        proposal = None if now.fits else propose(recipe, chosen, now)
        if proposal is None:
            continue
        what, changed, where = proposal
        after = estimate(changed, where)
        if after.total < now.total:
            found.append(Change(what, after.total, after.fits))
            recipe, chosen, now = changed, where, after
    return found


Proposal = tuple[str, Recipe, Topology] | None


def _smaller_cache(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if chosen.on_cpu or now.capacity is None or "engine: weights" not in now.engine or now.kv_tokens <= now.kv_wanted:
        return None
    cache = now.engine["engine: KV cache"]
    needed = sum(now.engine.values()) - cache + cache * now.kv_wanted / now.kv_tokens
    share = round(needed / now.capacity + 0.005, 2)
    return f"rollout.gpu_memory={share}", _with(recipe, "rollout", gpu_memory=share), chosen


def _sharded(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if chosen.world == 1 or "weights" in SHARED[chosen.backend] or recipe.rollout.engine == "native":
        return None
    return "--backend fsdp2", recipe, replace(chosen, backend="fsdp2")


def _recomputed(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if recipe.model.gradient_checkpointing:
        return None
    return "model.gradient_checkpointing=true", _with(recipe, "model", gradient_checkpointing=True), chosen


def _smaller_microbatch(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    tokens = recipe.data.max_prompt_tokens + recipe.rollout.max_tokens
    if recipe.train.tokens_per_microbatch <= tokens:
        return None
    return f"train.tokens_per_microbatch={tokens}", _with(recipe, "train", tokens_per_microbatch=tokens), chosen


def _adapter(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if recipe.model.lora is not None:
        return None
    return "model.lora={r: 16}", _with(recipe, "model", lora=LoraConfig(r=16)), chosen


def _elsewhere(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if not now.engine or recipe.rollout.engine != "vllm" or recipe.rollout.sleep:
        return None
    what = "rollout.placement=server rollout.servers.urls=[...], with engines on machines of their own"
    return what, _with(recipe, "rollout", placement="server"), chosen


def _more_devices(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    nodes = 2 * chosen.nodes
    if chosen.on_cpu or recipe.rollout.engine == "native":
        return None
    return f"--nodes {nodes}", recipe, replace(chosen, nodes=nodes, backend="fsdp2")


def _with(recipe: Recipe, section: str, **changes: object) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=changes)})
