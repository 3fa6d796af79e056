"""Memory of each process of a run, from arithmetic: what is kept, what a back-end shares out, and whether it fits.

The large parts only, in bytes. States follow the trainer's own optimizer: weights in the model's precision, and float32
masters, gradients and the two moments of Adam. Activations are those of a Llama-like block (Korthikanti et al. 2022,
arXiv:2205.05198: 34 numbers a token and unit of width, without the attention scores) and, with the packed forward, the
scores of a completion's tokens against prompt and completion, which it computes outright.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llmrl.launching.topology import Topology
from llmrl.plan import BYTES, GIB, ModelSize
from llmrl.policy.head import CHUNK_ELEMENTS
from llmrl.settings.model import LoraConfig
from llmrl.settings.recipe import Recipe

# Shared out among all processes, by back-end.
SHARED = {
    "ddp": frozenset[str](),
    "zero2": frozenset({"gradients", "masters and Adam"}),
    "zero3": frozenset({"weights", "gradients", "masters and Adam"}),
    "fsdp2": frozenset({"weights", "gradients", "masters and Adam"}),
}
PROCESS_GIB = {"gpu": 1.5, "cpu": 0.8}  # CUDA context and NCCL's buffers; Python with torch
ENGINE_GIB = {"gpu": 2.0, "cpu": 1.5}  # vLLM beyond weights and KV cache
BUCKET_GIB = 0.125  # gathered weights on their way to an engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes on one device (on CPUs: of one process). `capacity` is None if it is not known."""

    trainer: Mapping[str, int]
    engine: Mapping[str, int]
    capacity: int | None
    kv_tokens: int  # that the engine's cache holds
    kv_wanted: int  # that its requests can come to need at once
    longest: int  # tokens of one request

    @property
    def total(self) -> int:
        return sum(self.trainer.values()) + sum(self.engine.values())

    @property
    def fits(self) -> bool:
        """Whether it fits, and the cache holds at least one request of full length. True if the capacity is unknown."""
        enough = not self.engine or self.kv_tokens >= self.longest
        return self.capacity is None or (self.total <= self.capacity and enough)


def footprint(
    recipe: Recipe, size: ModelSize, chosen: Topology, needs: frozenset[str], *, capacity: int | None
) -> Footprint:
    """What each device of `chosen` holds. `capacity` is a device's memory in bytes (on CPUs: one process's share)."""
    width = BYTES[recipe.model.dtype]
    kind = "cpu" if chosen.on_cpu else "gpu"
    engine, kv_tokens = _engine(recipe, size, kind=kind, width=width, capacity=capacity)
    beside = recipe.rollout.placement == "colocated"
    wanted = recipe.rollout.prompts_per_step * recipe.rollout.group_size // chosen.world
    return Footprint(
        trainer=_trainer(recipe, size, chosen, needs, width=width) | {"process": int(PROCESS_GIB[kind] * GIB)},
        engine=engine if beside else {},
        capacity=capacity,
        kv_tokens=kv_tokens,
        kv_wanted=min(wanted, recipe.rollout.max_sequences) * recipe.model.max_length,
        longest=recipe.model.max_length,
    )


def _trainer(recipe: Recipe, size: ModelSize, chosen: Topology, needs: frozenset[str], *, width: int) -> dict[str, int]:
    trained = size.parameters if recipe.model.lora is None else adapter_parameters(size, recipe.model.lora.r)
    masters = 12 if recipe.model.dtype != "float32" or recipe.model.lora else 8
    states = {"weights": width * size.parameters, "gradients": 4 * trained, "masters and Adam": masters * trained}
    world, shared = chosen.world, SHARED[chosen.backend]
    parts = {name: -(-amount // world) if name in shared else amount for name, amount in states.items()}
    if "weights" in shared and world > 1:
        parts["weights gathered for a layer or the engine"] = _gathered(size, width)
    parts |= _activations(recipe, size, width=width)
    if "ref_logprobs" in needs and recipe.model.lora is None:
        parts["reference model"] = width * size.parameters
    critic = recipe.critic
    if "values" in needs and critic is not None and critic.kind == "separate":  # taken to be as large as the policy
        own = size.parameters if critic.lora is None else adapter_parameters(size, critic.lora.r)
        states = {"weights": width * size.parameters, "gradients": 4 * own, "masters and Adam": masters * own}
        cut = 1 if chosen.backend == "ddp" else world  # by FSDP2, whatever shares the policy
        parts["value model"] = sum(-(-n // cut) for n in states.values())
    return parts


def _gathered(size: ModelSize, width: int) -> int:
    """Two layers at a time in the forward pass, or one bucket on the way to the engine, whichever is more."""
    layer = (size.parameters - 2 * size.vocabulary * size.hidden) // size.layers
    return max(2 * layer * width, size.vocabulary * size.hidden * width, int(BUCKET_GIB * GIB))


def _activations(recipe: Recipe, size: ModelSize, *, width: int) -> dict[str, int]:
    tokens = max(recipe.train.tokens_per_microbatch, recipe.model.max_length)  # one row is never cut
    block = tokens * size.hidden * 34 * width // 2
    # Softmax's float32 output and its rounding are kept for the backward pass; masked scores live beside them meanwhile.
    pairs = tokens * recipe.model.max_length * size.heads if recipe.model.forward != "plain" else 0
    saved, working = pairs * (4 + width), pairs * (8 + 3 * width)
    if recipe.model.gradient_checkpointing:
        kept = size.layers * tokens * size.hidden * width
        layers = {"activations, recomputed": kept + block, "attention scores of one layer": working}
    else:
        layers = {"activations": size.layers * block, "attention scores": size.layers * saved + working - saved}
    return {name: amount for name, amount in layers.items() if amount} | {"logits": 3 * 4 * CHUNK_ELEMENTS}


def _engine(
    recipe: Recipe, size: ModelSize, *, kind: str, width: int, capacity: int | None
) -> tuple[dict[str, int], int]:
    """Parts of one engine, and how many tokens its KV cache holds. Servers and Ray's actors live elsewhere."""
    weights, own = width * size.parameters, int(ENGINE_GIB[kind] * GIB)
    per_token = size.layers * size.kv_width * width
    if kind == "gpu" and capacity is not None:
        cache = max(0, int(recipe.rollout.gpu_memory * capacity) - weights - own)
    else:
        cache = int(recipe.rollout.kv_cache_gib * GIB)
    return {"engine: weights": weights, "engine: KV cache": cache, "engine: working memory": own}, cache // per_token


def adapter_parameters(size: ModelSize, rank: int) -> int:
    """About how many parameters a LoRA adapter on all linear layers has."""
    per_layer = 2 * size.hidden + 2 * (size.hidden + size.kv_width // 2) + 3 * (size.hidden + size.intermediate)
    return size.layers * rank * (per_layer + 2 * size.hidden)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that would make a run need less memory, and what it then needs (together with the changes before it)."""

    what: str
    total: int
    fits: bool


def advice(recipe: Recipe, chosen: Topology, estimate: Callable[[Recipe, Topology], Footprint]) -> list[Change]:
    """Changes that, one after the other, make a run fit that does not, cheapest first.

    Changes that bring nothing are left out. If the last one does not fit either, nothing here is enough.
    """
    now = estimate(recipe, chosen)
    found: list[Change] = []
    for propose in (_smaller_cache, _sharded, _recomputed, _smaller_microbatch, _adapter, _elsewhere, _more_devices):
        if now.fits:
            break
        proposal = propose(recipe, chosen, now)
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
    if chosen.on_cpu or now.capacity is None or not now.engine or now.kv_tokens <= now.kv_wanted:
        return None
    cache = now.engine["engine: KV cache"]
    needed = sum(now.engine.values()) - cache + cache * now.kv_wanted / now.kv_tokens
    share = round(needed / now.capacity + 0.005, 2)
    return f"rollout.gpu_memory={share}", _with(recipe, "rollout", gpu_memory=share), chosen


def _sharded(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if chosen.world == 1 or "weights" in SHARED[chosen.backend]:
        return None
    return "--backend fsdp2", recipe, replace(chosen, backend="fsdp2")


def _recomputed(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if recipe.model.gradient_checkpointing:
        return None
    return "model.gradient_checkpointing=true", _with(recipe, "model", gradient_checkpointing=True), chosen


def _smaller_microbatch(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    tokens = recipe.model.max_length
    if recipe.train.tokens_per_microbatch <= tokens:
        return None
    return f"train.tokens_per_microbatch={tokens}", _with(recipe, "train", tokens_per_microbatch=tokens), chosen


def _adapter(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if recipe.model.lora is not None:
        return None
    return "model.lora={r: 16}", _with(recipe, "model", lora=LoraConfig(r=16)), chosen


def _elsewhere(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    if not now.engine:
        return None
    what = "rollout.placement=server rollout.servers.urls=[...], with engines on machines of their own"
    return what, _with(recipe, "rollout", placement="server"), chosen


def _more_devices(recipe: Recipe, chosen: Topology, now: Footprint) -> Proposal:
    nodes = 2 * chosen.nodes
    return None if chosen.on_cpu else (f"--nodes {nodes}", recipe, replace(chosen, nodes=nodes, backend="fsdp2"))


def _with(recipe: Recipe, section: str, **changes: object) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=changes)})
