"""Requests to vLLM's OpenAI-compatible server and its answers, as JSON."""

from __future__ import annotations

import math
from typing import Any

from llmrl.types import Completion, Request, Status


def completion_body(request: Request, model: str) -> dict[str, Any]:
    """What to post to /v1/completions: token ids in, token ids and the sampled ones' log-probabilities out."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.tokens),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(0, sampling.top_k),
        "min_p": sampling.min_p,
        "seed": None if sampling.seed is None else sampling.seed % 2**63,
        "logprobs": 0,
        "return_token_ids": True,
    }
    if sampling.stop:
        body |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    return body


def completion_of(choice: dict[str, Any]) -> Completion:
    """Raises KeyError, TypeError or ValueError for a choice that is none."""
    tokens, logprobs = tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
    if len(tokens) != len(logprobs) or any(value is None or math.isnan(value) for value in logprobs):
        raise ValueError(f"{len(tokens)} tokens and log-probabilities {logprobs[:3]}")
    reason = choice["finish_reason"]
    status = {"length": Status.truncated(), "stop": Status.done()}.get(reason)
    return Completion(
        tokens=tokens,
        logprobs=logprobs,
        text=choice["text"],
        status=status or Status.error(f"the server stopped with {reason!r}"),
    )
