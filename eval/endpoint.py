"""OpenAI-compatible servers as engine: the same token ids go to `/v1/completions`, many requests at once.

Written for `vllm serve`. With several URLs every request goes to the server that has the fewest at that moment; one that
dies is left out, and what it was asked is asked elsewhere. Weights cannot be loaded.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from llmrl.errors import EngineError
from llmrl.rollout.engine import collect
from llmrl.types import Completion, Request, Status

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 4
WAIT_S = 1.0  # before the second try; doubled each time
LONGEST_REASON = 300  # characters of a server's error that are shown


class Unreachable(EngineError):
    """A server that did not answer, however often it was asked."""


class EndpointEngine:
    """`urls` end in /v1. `model` is the served name (None: the only one there is). `tokenizer` counts where the server
    does not return token ids. `concurrency` requests run at once on each server. `say` hears of a server that died.
    EngineError if a server does not answer or does not serve the model.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        tokenizer: Any,
        model: str | None = None,
        concurrency: int = 128,
        timeout_s: float = 600.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        if wrong := [url for url in self._urls if not url.startswith(("http://", "https://"))]:
            raise EngineError(f"endpoint {wrong[0]!r} is no URL; write it like http://localhost:8000/v1")
        self._say = say
        self._lock = threading.Lock()
        self._busy = [0] * len(self._urls)  # requests that are under way
        self._dead: set[int] = set()
        self._tokenizer = tokenizer
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._models = [self._served(url, model) for url in self._urls]

    def _served(self, url: str, wanted: str | None) -> str:
        names = [str(item["id"]) for item in self._call(f"{url}/models", None).get("data", [])]
        if wanted in names:
            return str(wanted)
        if len(names) == 1:
            return names[0]
        raise EngineError(
            f"{url} serves {', '.join(names) or 'no model'}, not {wanted}; give --model as it is named there"
        )

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        """Completions as they arrive."""
        pool = ThreadPoolExecutor(self._concurrency * len(self._urls), thread_name_prefix="endpoint")
        try:
            places = {pool.submit(self._complete, request): i for i, request in enumerate(requests)}
            for future in as_completed(places):
                yield places[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return collect(self, requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        raise EngineError("an endpoint takes no weights; evaluate the checkpoint where it lies")

    def close(self) -> None:
        return

    def _complete(self, request: Request) -> Completion:
        """Ask the least busy server; if it is gone, the next. Unreachable if all are."""
        while True:
            with self._lock:
                alive = [i for i in range(len(self._urls)) if i not in self._dead]
                which = min(alive or range(len(self._urls)), key=self._busy.__getitem__)
                self._busy[which] += 1
            try:
                return self._ask(which, request)
            except Unreachable as error:
                with self._lock:
                    news, left = which not in self._dead, len(alive) > 1
                    self._dead.add(which)
                if not left:
                    raise
                if news:
                    self._say(f"{error}; the other servers go on")
            finally:
                with self._lock:
                    self._busy[which] -= 1

    def _ask(self, which: int, request: Request) -> Completion:
        sampling = request.sampling
        body = {
            "model": self._models[which],
            "prompt": list(request.tokens),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "logprobs": 0,
            **({"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}),
            **({"top_k": sampling.top_k} if sampling.top_k > 0 else {}),
            **({"min_p": sampling.min_p} if sampling.min_p > 0 else {}),
            "return_token_ids": True,
        }
        reply = self._call(f"{self._urls[which]}/completions", body)
        try:
            return self._completion(reply["choices"][0])
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(
                f"{self._urls[which]} sent no completion: {json.dumps(reply)[:LONGEST_REASON]}"
            ) from error

    def _completion(self, choice: dict[str, Any]) -> Completion:
        text: str = choice["text"]
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
        known = len(logprobs) == len(tokens) and None not in logprobs
        reason = choice.get("finish_reason")
        status = {"length": Status.truncated(), "stop": Status.done()}.get(str(reason))
        return Completion(
            tokens=tuple(tokens),
            logprobs=tuple(logprobs) if known else (float("nan"),) * len(tokens),
            text=text,
            status=status or Status.error(f"the endpoint stopped with {reason!r}"),
        )

    def _call(self, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """GET (no body) or POST as JSON. A server that is gone or busy is tried again, a refusal is not."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, TRIES + 1):
            try:
                request = urllib.request.Request(url, data=data, headers=headers)
                with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                    answer: dict[str, Any] = json.load(reply)
                    return answer
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read().decode(errors='replace')[:LONGEST_REASON]}"
                if error.code < 500 and error.code != 429:
                    raise EngineError(f"{url} refused a request: {reason}") from error
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < TRIES:
                time.sleep(WAIT_S * 2 ** (attempt - 1))
        raise Unreachable(f"{url} did not answer in {TRIES} tries, at last: {reason}")
