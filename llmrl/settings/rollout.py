"""The part of a recipe that says how completions are sampled, and where the engines are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as rule

from llmrl.settings.section import Section


class DynamicSampling(Section):
    """DAPO's dynamic sampling: groups whose scores are all equal teach nothing and are replaced by new prompts."""

    max_rounds: PositiveInt = Field(3, description="extra rounds of generation per step at most")


class ServersConfig(Section):
    """vLLM servers for `rollout.placement: server`."""

    start: PositiveInt = Field(
        1, description="servers to start on this machine, on loopback; they share its cores or GPUs"
    )
    urls: list[str] = Field(default_factory=list, description="running servers instead, such as http://host:8000")
    key_variable: str = Field("LLMRL_API_KEY", description="environment variable with the API key of `urls`")
    transfer: Literal["files", "gloo", "nccl"] = Field(
        "files", description="weights go through weights_dir, or straight to the servers: gloo to CPUs, nccl to GPUs"
    )
    weights_dir: str = Field("/dev/shm", description="folder that trainer and servers share, for transfer files")
    request_timeout_s: PositiveFloat = Field(600.0, description="longest wait for one completion")
    update_timeout_s: PositiveFloat = Field(300.0, description="longest wait until new weights are in place")


class RayConfig(Section):
    """vLLM actors on Ray for `rollout.placement: ray`."""

    actors: PositiveInt = 2
    cpus: PositiveFloat = Field(1.0, description="of each actor")
    gpus: float = Field(0.0, ge=0, description="of each actor")
    address: str | None = Field(
        None, description="of a running cluster (auto finds this node's); null starts a local one"
    )


class RolloutConfig(Section):
    """How completions are sampled."""

    engine: Literal["auto", "vllm", "native", "hf"] = Field(
        "vllm",
        description="vllm; native, sampling with the trained model itself; auto, the faster of the two; or the reference hf",
    )
    placement: Literal["colocated", "server", "ray"] = Field(
        "colocated", description="an engine beside every trainer process, vLLM servers, or vLLM actors on Ray"
    )
    max_staleness: NonNegativeInt = Field(
        0,
        description="versions that a batch may be old: 0 takes turns, 1 samples while training, more queue further ahead",
    )
    threads: NonNegativeInt = Field(
        0, description="CPU cores of the engine beside a trainer; 0 takes every core there is"
    )
    servers: ServersConfig = Field(default_factory=ServersConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    isolated: bool = Field(
        True, description="run the engine in a child process that is replaced if it dies or hangs; native never is"
    )
    stored: str | None = Field(
        None,
        description="a .jsonl of programs written before, by prompt_id: they are trained on and nothing is sampled",
    )
    prompts_per_step: PositiveInt = 16
    group_size: PositiveInt = Field(8, description="completions per prompt")
    max_tokens: PositiveInt = Field(
        256, description="completion length limit, in tokens; less where max_length is short"
    )
    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)
    min_p: float = Field(0.0, ge=0, lt=1)
    stop: list[str] = Field(default_factory=list, description="strings that end a completion")
    mask_truncated: bool = Field(False, description="completions cut by max_tokens do not train (DAPO)")
    dynamic_sampling: DynamicSampling | None = None
    max_sequences: PositiveInt = Field(128, description="requests the engine runs at once")
    kv_cache_gib: PositiveFloat = Field(2.0, description="KV cache on a CPU")
    gpu_memory: float = Field(0.4, gt=0, lt=1, description="share of a GPU's memory for vLLM")
    sleep: bool = Field(
        False, description="vLLM beside the trainer gives its GPU memory back while the policy trains; raise gpu_memory"
    )
    verify_weights: Literal["off", "sampled", "full"] = Field(
        "sampled", description="compare checksums of the engine's weights after each sync: of a few columns, or all"
    )
    eager: bool = Field(True, description="no compilation: the engine starts in seconds")
    stall_timeout_s: PositiveFloat = Field(120.0, description="a silent engine is replaced after this long")
    start_timeout_s: PositiveFloat = 600.0

    @rule(mode="after")
    def _placed(self) -> RolloutConfig:
        if self.placement == "server" and self.engine not in ("vllm", "auto"):
            raise ValueError(f"rollout.placement=server serves with vLLM only, not rollout.engine={self.engine}")
        engine = "vllm" if self.engine == "auto" else self.engine
        if self.sleep and (engine, self.placement, self.max_staleness) != ("vllm", "colocated", 0):
            raise ValueError(
                "rollout.sleep=true is for rollout.engine=vllm with rollout.placement=colocated and rollout.max_staleness=0; "
                "engines elsewhere, or at work while the policy trains, have no memory to give back"
            )
        return self
