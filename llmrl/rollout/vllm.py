"""Rollouts from a real vLLM engine in this process, on a CPU or a GPU. The only module that imports vllm."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmrl.data.pictures import load_pictures
from llmrl.errors import EngineError
from llmrl.hardware import cores
from llmrl.memory import keep_few_kernels
from llmrl.rollout.engine import ChecksumRequest, EngineSettings, collect, readable, seen_through
from llmrl.rollout.packed_weights import checksums
from llmrl.types import Completion, Request, Sampling, Status

if TYPE_CHECKING:
    from torch import Tensor

HEARTBEAT_S = 1.0
PREFILL_TOKENS = 8192
MOST_IMAGES = 64  # in one prompt


class VLLMEngine:
    """One `vllm.LLM`. Weights are swapped in memory; the prefix cache never outlives a call.

    Must be built before anything else of vllm is imported: it sets the environment that vllm reads at import.
    """

    def __init__(self, settings: EngineSettings) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in memory
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["DO_NOT_TRACK"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(settings.kv_cache_gib))))
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))  # vllm goes down to 1 otherwise
        keep_few_kernels()
        try:
            from vllm import LLM
        except ImportError as error:
            raise EngineError(
                f"rollout.engine is vllm, which cannot be imported ({error}); install it with "
                "pip install 'llmrl[cpu]' or 'llmrl[gpu]', or set rollout.engine=hf"
            ) from error
        import torch

        # A CPU's default block of 128 tokens would keep shorter prompts from being shared between siblings.
        options: dict[str, Any] = {"block_size": 32}
        if torch.cuda.is_available():
            options = {"gpu_memory_utilization": settings.gpu_memory, "enable_sleep_mode": settings.sleep}
        options |= {
            "model": settings.model,
            "dtype": settings.dtype,
            "max_model_len": settings.max_length,
            "max_num_seqs": settings.max_sequences,
            # A seeded request whose prompt is prefilled in pieces rewinds its generator, which a CPU generator cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_length, PREFILL_TOKENS),
            "enable_prefix_caching": True,
            "enforce_eager": settings.eager,
            "seed": settings.seed,
            "trust_remote_code": False,
            "disable_log_stats": True,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled, temperature included
        }
        self._reader = load_pictures(settings.model)
        if self._reader is not None:
            options |= {"limit_mm_per_prompt": {"image": MOST_IMAGES}, "skip_mm_profiling": True}
        self._llm = LLM(**options)
        self._settings = settings
        self._can_sleep = settings.sleep and torch.cuda.is_available()
        self._asleep = False

    def sleep(self) -> None:
        if self._can_sleep and not self._asleep:
            self._llm.sleep(level=2)  # the weights are thrown away, not copied out: `load` brings all of them
            self._asleep = True

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        readable(requests, self._reader, self._settings.model)
        if self._asleep:
            raise EngineError("the engine gave its weights back when it went to sleep; load weights before generating")
        engine = self._llm.llm_engine
        self._llm.reset_prefix_cache()
        for index, request in enumerate(requests):
            engine.add_request(str(index), self._prompt(request), _sampling_params(request.sampling))
        beat = time.monotonic()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    index = int(output.request_id)
                    self._check_prompt(requests[index], output.prompt_token_ids)
                    yield index, seen_through(_completion(output), self._reader)
            if time.monotonic() - beat > HEARTBEAT_S:
                beat = time.monotonic()
                yield None

    def _prompt(self, request: Request) -> Any:
        """What the engine takes. It puts the tokens of each picture into the prompt by itself."""
        from vllm import TokensPrompt

        if self._reader is None or not request.media:
            return TokensPrompt(prompt_token_ids=list(request.tokens))
        return TokensPrompt(
            prompt_token_ids=list(self._reader.collapse(request.tokens, request.media)),
            multi_modal_data={"image": [item.open() for item in request.media]},
            multi_modal_uuids={"image": [item.hash for item in request.media]},
        )

    def _check_prompt(self, request: Request, read: Sequence[int] | None) -> None:
        if request.media and tuple(read or ()) != request.tokens:
            raise EngineError(
                f"vllm read a prompt with images as {len(read or ())} tokens and training would read {len(request.tokens)}; "
                f"its processor of {self._settings.model} differs from transformers'. Set rollout.engine=native or hf"
            )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        # The CPU build repacks weights, so its per-parameter loader fails; reload_weights repacks again.
        if self._asleep:
            self._llm.wake_up(tags=["weights"])  # the cache only afterwards, so that its memory is free meanwhile
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()
        if self._reader is not None:  # what an older vision tower saw
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        (found,) = self._llm.apply_model(lambda model: checksums(model, request))
        return found

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            del self._llm


def _sampling_params(sampling: Sampling) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k if sampling.top_k > 0 else 0,
        min_p=sampling.min_p,
        stop=list(sampling.stop) or None,
        skip_special_tokens=False,  # but the one that ends a completion is no part of its text
        seed=sampling.seed,
        logprobs=0,  # the sampled token's own log-probability and no other
    )


def _completion(finished: Any) -> Completion:
    output = finished.outputs[0]
    tokens = tuple(output.token_ids)
    logprobs = tuple(entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True))
    status = Status.truncated() if output.finish_reason == "length" else Status.done()
    if output.finish_reason not in ("length", "stop"):
        status = Status.error(f"the engine stopped with {output.finish_reason!r}")
    stop = output.stop_reason if isinstance(output.stop_reason, str) else ""
    return Completion(tokens=tokens, logprobs=logprobs, text=output.text + stop, status=status)
