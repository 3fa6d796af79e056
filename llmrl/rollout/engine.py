"""The engine protocol: token ids in, token ids out; and the settings every engine is built from.

Engines hold no state across calls but their weights: the same weights and the same requests in the same order give the
same completions, also in another process. `VLLMEngine` (vllm.py), `NativeEngine` (native.py, the trained model itself)
and `HFEngine` (hf.py, the reference) run in this process; `ProcessEngine` (process.py) runs any of them in a child that
can be killed and replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from llmrl.errors import EngineError
from llmrl.types import Completion, Request, Sampling, Status

if TYPE_CHECKING:
    from torch import Tensor

    from llmrl.data.pictures import PictureReader

SAMPLED_COLUMNS = 2
Told = Callable[[int, int], None]  # (completions finished, of how many)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksumRequest:
    """Which columns of which weights to look at: shapes and precisions of what was sent, by Hugging Face name."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # such as bfloat16
    version: int
    full: bool

    def columns(self, width: int) -> list[int]:
        """The columns to look at in a matrix of `width` columns.

        >>> ChecksumRequest(shapes={}, dtypes={}, version=3, full=False).columns(10)
        [3, 8]
        """
        count = width if self.full else min(width, SAMPLED_COLUMNS)
        return sorted({(self.version + number * width // count) % width for number in range(count)})


class RolloutEngine(Protocol):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion per request, in the order of the requests."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replace the weights; names are those of the Hugging Face model. Raises EngineError if they do not fit."""
        ...

    def close(self) -> None:
        """Free the engine; calling it twice is fine."""
        ...


class NoEngine:
    """For runs that sample nothing: supervised learning that is measured by its loss."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Raises EngineError."""
        raise EngineError(f"{len(requests)} completions were asked for in a run that samples nothing")

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Nothing holds weights here; they are not even gathered."""

    def close(self) -> None:
        """Nothing to free."""


class TrainedEngine(RolloutEngine, Protocol):
    """An engine that training loads new weights into, and can look at afterwards."""

    def checksums(self, request: ChecksumRequest) -> dict[str, int]:
        """Checksums (llmrl.rollout.verify) of the engine's own weights under the names in `request`, of those it can show."""
        ...


class SleepingEngine(RolloutEngine, Protocol):
    """An engine on the trainer's own GPU that steps aside while the policy trains."""

    def sleep(self) -> None:
        """Give back the memory of weights and KV cache until `load` brings new weights. Nothing on a CPU."""
        ...


class StreamingEngine(RolloutEngine, Protocol):
    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        """Completions with their request's index as they finish; None now and then as a sign of life."""
        ...


class LocalEngine(TrainedEngine, StreamingEngine, Protocol):
    """What runs in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is built from; every field is plain data, so that it crosses a process border.

    `model` is a Hugging Face folder or hub id. `max_length` bounds prompt plus completion, in tokens. `max_sequences` is
    how many requests run at once. `kv_cache_gib` is the KV cache on a CPU, `gpu_memory` the share of a GPU's memory
    that vLLM may take; with `sleep` the engine can give it back while it rests. `threads` is how many CPU cores an
    engine in a child process takes, the last ones of this process's; 0 takes all. `eager` switches compilation off
    (start in seconds instead of a minute).
    """

    kind: Literal["vllm", "hf", "native"] = "vllm"
    model: str
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_length: int = 1024
    max_sequences: int = 128
    kv_cache_gib: float = 2.0
    gpu_memory: float = 0.4
    eager: bool = True
    seed: int = 0
    threads: int = 0
    sleep: bool = False


def refuse_media(requests: Sequence[Request], *, reason: str) -> None:
    """Raise EngineError if any request shows an image: an engine that would only read its text must not answer."""
    count = sum(bool(request.media) for request in requests)
    if count:
        raise EngineError(f"{count} of {len(requests)} prompts show images, and {reason}")


def readable(requests: Sequence[Request], reader: PictureReader | None, model: str) -> None:
    """Raise EngineError for images that `model` cannot see."""
    if reader is None:
        refuse_media(requests, reason=f"{model} reads text only; take a vision-language model, or drop the images")


def seen_through(completion: Completion, reader: PictureReader | None) -> Completion:
    """`completion`, failed if the policy wrote the token that stands for a picture: there is none to see in its place."""
    if reader is None or reader.token not in completion.tokens:
        return completion
    return replace(completion, status=Status.error(f"the policy wrote {reader.placeholder}, which stands for an image"))


def written(tokenizer: Any, tokens: Sequence[int], sampling: Sampling, *, ended: bool) -> str:
    """The text of what a policy wrote, special tokens too (tags and tool calls may be such), but not the one that `ended`
    it. A stop string ends the text, even if its last token goes on.
    """
    text: str = tokenizer.decode(list(tokens[:-1] if ended else tokens), skip_special_tokens=False)
    ends = [text.find(stop) + len(stop) for stop in sampling.stop if stop in text]
    return text[: min(ends)] if ends else text


def collect(engine: StreamingEngine, requests: Sequence[Request], told: Told | None = None) -> list[Completion]:
    """All of `engine.stream(requests)`, in the order of the requests; `told` hears how many there are after each one.

    Raises EngineError if any is missing.
    """
    found: dict[int, Completion] = {}
    for item in engine.stream(requests):
        if item is None:
            continue
        found[item[0]] = item[1]
        if told is not None:
            told(len(found), len(requests))
    missing = len(requests) - len(found)
    if missing:
        raise EngineError(f"the engine returned no completion for {missing} of {len(requests)} requests")
    return [found[index] for index in range(len(requests))]


def generated(engine: RolloutEngine, requests: Sequence[Request], told: Told | None) -> list[Completion]:
    """`engine.generate(requests)`; where the engine streams, `told` hears how many are finished."""
    own = cast(StreamingEngine, engine)
    return collect(own, requests, told) if hasattr(engine, "stream") else engine.generate(requests)
