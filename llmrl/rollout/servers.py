"""OpenAI-compatible vLLM servers behind an engine pool, over one httpx client each.

For training they need vLLM's development endpoints (pause, resume, collective_rpc), are started by `serve.py` on this
machine or given as URLs, and take weights by `transfer.py`. For evaluation they are used as they are.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import httpx

from llmrl.errors import EngineError
from llmrl.rollout.as_json import to_json
from llmrl.rollout.backend import Lost, Put, said, together
from llmrl.rollout.engine import ChecksumRequest
from llmrl.rollout.pool import EnginePool
from llmrl.rollout.transfer import Transfer
from llmrl.rollout.weight_check import METHOD
from llmrl.types import Completion, Request, Status

WAIT_S = 1.0  # before the second try; doubled each time
BUSY = {429, *range(500, 600)}  # status codes of a server that another may stand in for
TRIES = 4  # of a server that is asked and never trained
SHOWN = 300  # characters of a server's answer in a message


class Process(Protocol):
    """A server of ours, as `serve.py` starts it."""

    def restart(self) -> None: ...

    def close(self) -> None: ...


def endpoints(
    urls: Sequence[str], *, tokenizer: Any, model: str | None = None, concurrency: int = 128, timeout_s: float = 600.0,
    say: Callable[[str], None] = print,
) -> EnginePool:  # fmt: skip
    """OpenAI-compatible servers that serve `model` (None: the only one there is), `concurrency` requests at once on each.

    `tokenizer` counts where a server returns no token ids. The key is OPENAI_API_KEY's. EngineError if one does not
    answer or does not serve the model. No weights can be loaded.
    """
    if wrong := [url for url in urls if not url.startswith(("http://", "https://"))]:
        raise EngineError(f"endpoint {wrong[0]!r} is no URL; write it like http://localhost:8000/v1")
    made = [
        Server(
            url, model=model, tokenizer=tokenizer, key=os.environ.get("OPENAI_API_KEY"), at_once=concurrency, tries=TRIES,
            request_s=timeout_s, trust_env=True,
        )
        for url in urls
    ]  # fmt: skip
    return EnginePool(made, say=say)


class Server:
    """A server at `url`, with or without /v1, which serves `model` (None or another name: the only one it serves).

    `transfer` brings it weights; `process` is set if it is ours to restart. `key` is its API key, `at_once` how many requests
    it is given, `tries` how often a server that is busy or away is asked before it counts as lost. `tokenizer` counts
    tokens where it returns no ids; without one that is an error. `trust_env` is httpx's: proxies of the environment.
    """

    watched = True

    def __init__(
        self,
        url: str,
        *,
        transfer: Transfer | None = None,
        process: Process | None = None,
        key: str | None = None,
        model: str | None = None,
        tokenizer: Any = None,
        at_once: int | None = None,
        tries: int = 1,
        request_s: float = 600.0,
        update_s: float = 300.0,
        trust_env: bool = False,
    ) -> None:
        self.name = url.rstrip("/").removesuffix("/v1")
        self.at_once = at_once
        self._transfer, self._process = transfer, process
        self._model, self._tokenizer = model, tokenizer
        self._tries, self._update_s = tries, update_s
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(request_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=trust_env,
        )

    def piece(self, waiting: int, members: int) -> int:
        return 1

    async def start(self) -> None:
        """Find the model that is served."""
        found = (await self._call("/v1/models")).get("data", [])
        names = [str(item["id"]) for item in found]
        if self._model not in names and len(names) != 1:
            told = f"{self.name} serves {', '.join(names) or 'no model'}, not {self._model}"
            raise EngineError(f"{told}; give --model as it is named there")
        self._model = self._model if self._model in names else names[0]

    async def run(self, requests: Sequence[Request], put: Put) -> None:
        await together([self._complete(number, request, put) for number, request in enumerate(requests)])

    async def _complete(self, number: int, request: Request, put: Put) -> None:
        reply = await self._call("/v1/completions", completion_body(request, str(self._model)))
        try:
            completion = completion_of(reply["choices"][0], self._tokenizer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{self.name} sent no completion with token ids: {reply!s:.{SHOWN}}") from error
        put(number, completion)

    async def healthy(self, timeout_s: float) -> None:
        await self._call("/health", timeout_s=timeout_s)

    async def restart(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.restart)

    async def load(self, version: int) -> None:
        """Pause, reload, forget cached prefixes, resume."""
        assert self._transfer is not None, "a pool without a store loads nothing"
        await self._call("/pause?mode=keep", {})
        await self._transfer.give(self.name, self._rpc)
        await self._call("/reset_prefix_cache", {})
        await self._call("/resume", {})

    async def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        found: dict[str, int] = (await self._rpc(METHOD, request=to_json(request)))["results"][0]
        return found

    async def close(self) -> None:
        await self._client.aclose()
        if self._process is not None:
            self._process.close()

    async def _rpc(self, method: str, **kwargs: str) -> dict[str, Any]:
        return await self._call("/collective_rpc", {"method": method, "kwargs": kwargs, "timeout": self._update_s})

    async def _call(self, path: str, body: Any = None, *, timeout_s: float | None = None) -> dict[str, Any]:
        """GET (no body) or POST as JSON. A server that is away or busy is tried again, then lost; a refusal is an error."""
        timeout = timeout_s if timeout_s is not None else httpx.USE_CLIENT_DEFAULT
        ask = partial(
            self._client.request, "GET" if body is None else "POST", self.name + path, json=body, timeout=timeout
        )
        for attempt in range(self._tries):
            await asyncio.sleep(WAIT_S * 2 ** (attempt - 1) if attempt else 0)
            try:
                reply = await ask()
                if reply.status_code < 400:
                    answer = reply.json() if reply.content else {}
                    return answer if isinstance(answer, dict) else {"results": answer}
                why = f"{reply.status_code} {reply.text[:SHOWN]}"
                if path != "/health" and (reply.status_code not in BUSY or not path.startswith("/v1/")):
                    raise EngineError(f"{self.name}{path} refused a request: {why}{_hint(path, reply.status_code)}")
            except (httpx.TransportError, ValueError) as error:
                why = said(error)
        tries = f" in {self._tries} tries, at last" if self._tries > 1 else ""
        raise Lost(f"{self.name}{path} did not answer{tries}: {why}")


def _hint(path: str, code: int) -> str:
    if path.startswith("/v1/"):
        return ""
    if code == 404:
        return " (start it with VLLM_SERVER_DEV_MODE=1)"
    extension = "--worker-extension-cls llmrl.rollout.weight_check.WeightCheck"
    return f" (start it with {extension}, or set rollout.verify_weights=off)" if path == "/collective_rpc" else ""


def completion_body(request: Request, model: str) -> dict[str, Any]:
    """What to post to /v1/completions. Every sampling setting is sent: a server may have defaults of its model's own."""
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
        "skip_special_tokens": False,  # but the one that ends a completion is no part of its text
    }
    return body | ({"stop": list(sampling.stop)} if sampling.stop else {})


def completion_of(choice: dict[str, Any], tokenizer: Any = None) -> Completion:
    """A server's answer. With a `tokenizer`, what lacks token ids or log-probabilities is counted and has NaN for them.

    Raises KeyError, TypeError or ValueError for a choice that is none.
    """
    met = choice.get("stop_reason")
    text: str = choice["text"] + (met if isinstance(met, str) else "")
    tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs") or []
    if tokens is None:
        if tokenizer is None:
            raise ValueError("it has no token_ids")
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) != len(logprobs) or any(value is None or math.isnan(value) for value in logprobs):
        if tokenizer is None:
            raise ValueError(f"{len(tokens)} tokens and log-probabilities {logprobs[:3]}")
        logprobs = [float("nan")] * len(tokens)
    reason = choice.get("finish_reason")
    status = {"length": Status.truncated(), "stop": Status.done()}.get(str(reason))
    return Completion(
        tokens=tuple(tokens), logprobs=tuple(logprobs), text=text,
        status=status or Status.error(f"the server stopped with {reason!r}"),
    )  # fmt: skip
