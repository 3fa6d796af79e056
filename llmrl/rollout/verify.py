"""Did the weights arrive? Checksums of what was sent, compared with checksums of what the engine computes with.

The unit is a column of a weight matrix, because an engine that has packed its weights for its own kernels can still give
one back exactly: it is what a layer answers to a one-hot input. Sampled checksums take a few columns of every weight,
others for every version; full ones take all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from llmrl.errors import EngineError
from llmrl.rollout.engine import ChecksumRequest, SleepingEngine, StreamingEngine, TrainedEngine
from llmrl.types import Completion, Request

if TYPE_CHECKING:
    from torch import Tensor

Verify = Literal["off", "sampled", "full"]


def chosen(tensor: Tensor, request: ChecksumRequest) -> Tensor:
    """The columns of a weight [rows, ...] that `request` asks for; a vector whole."""
    if tensor.dim() < 2:
        return tensor
    matrix = tensor.reshape(tensor.shape[0], -1)
    return matrix if request.full else matrix[:, request.columns(matrix.shape[1])]


def checksum(values: Tensor) -> int:
    """CRC-32 of the bytes of `values`; 0.0 and -0.0 count as the same number."""
    import torch

    return zlib.crc32((values.detach() + 0.0).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def copy_weights(model: Any, weights: Iterable[tuple[str, Tensor]], *, source: str) -> None:
    """Put `weights` into a Hugging Face model (`source` in messages). Raises EngineError for one that does not fit."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in weights:
        if name not in own or own[name].shape != tensor.shape:
            raise EngineError(f"weight {name} of shape {tuple(tensor.shape)} does not fit {source}")
        own[name].data.copy_(tensor)


def checksums(model: Any, request: ChecksumRequest) -> dict[str, int]:
    """Checksums of a Hugging Face model's weights, of those in `request` that it has."""
    own = dict(model.named_parameters(remove_duplicate=False))
    return {name: checksum(chosen(own[name], request)) for name in request.shapes if name in own}


def sync(
    engine: TrainedEngine, weights: Iterable[tuple[str, Tensor]], *, version: int, verify: Verify = "sampled"
) -> float:
    """Load `weights` into `engine`, and raise EngineError if it then holds others, or can show none of them.

    Returns the share of the weights that could be compared: an engine that arranges some layers in a way of its own
    (experts, say) does not show them.
    """
    sent: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    request = ChecksumRequest(shapes=shapes, dtypes=dtypes, version=version, full=verify == "full")

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if verify != "off":
                shapes[name], dtypes[name] = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
                sent[name] = checksum(chosen(tensor, request))
            yield name, tensor

    engine.load(noted(), version=version)
    if verify == "off":
        return 0.0
    found = engine.checksums(request)
    wrong = sorted(name for name, own in found.items() if own != sent[name])
    if wrong or not found:
        what = f"{len(wrong)} of {len(sent)} differ, such as {wrong[0]}" if wrong else "it shows none of them"
        raise EngineError(
            f"the engine does not hold the weights of version {version}: {what}. Continue with --resume; if it happens "
            "again, please report it (rollout.verify_weights=off trains on regardless)"
        )
    return len(found) / len(sent)


class VerifiedEngine:
    """An engine whose weights are looked at after every transfer, as `verify` says."""

    def __init__(self, engine: TrainedEngine, verify: Verify) -> None:
        self._engine = engine
        self._verify = verify

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return self._engine.generate(requests)

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion] | None]:
        return cast(StreamingEngine, self._engine).stream(requests)

    def load(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        sync(self._engine, weights, version=version, verify=self._verify)

    def sleep(self) -> None:
        cast(SleepingEngine, self._engine).sleep()

    def close(self) -> None:
        self._engine.close()
