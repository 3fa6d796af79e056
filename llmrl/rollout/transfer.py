"""How new weights get to servers: through a folder that both sides see, or straight into their workers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from llmrl.rollout import weight_broadcast
from llmrl.rollout.as_json import to_json
from llmrl.rollout.weight_broadcast import Backend, Rendezvous, TensorSpec, WeightChannel

if TYPE_CHECKING:
    from torch import Tensor


class Rpc(Protocol):
    """Calls a method of every worker of one server."""

    def __call__(self, method: str, **kwargs: str) -> Awaitable[Mapping[str, Any]]: ...


class WeightStore(Protocol):
    """Holds the newest weights, for engines that are there and those that come back."""

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Hold these weights instead of the earlier ones, which stay until `settle`: an engine may still be reading them."""
        ...

    def settle(self) -> None: ...

    def forget(self, name: str) -> None:
        """The engine of that name is gone; another may answer there later."""
        ...

    def close(self) -> None: ...


class Transfer(WeightStore, Protocol):
    async def give(self, url: str, rpc: Rpc) -> None:
        """Put what is held into the workers of the server at `url`; raises what `rpc` raises, or RuntimeError."""
        ...


class Files:
    """A safetensors file in a folder of our own inside `parent`, in shared memory on one machine."""

    def __init__(self, parent: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="llmrl-weights-", dir=parent))
        self._newest: Path | None = None

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        from safetensors.torch import save_file

        folder = self._folder / f"version-{version}"
        folder.mkdir(exist_ok=True)
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights}
        save_file(tensors, folder / "model.safetensors", metadata={"version": str(version)})
        self._newest = folder

    async def give(self, url: str, rpc: Rpc) -> None:
        await rpc("reload_weights", weights_path=str(self._newest))

    def settle(self) -> None:
        for folder in self._folder.iterdir():
            if folder != self._newest:
                shutil.rmtree(folder, ignore_errors=True)

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Direct:
    """Broadcasts to each server over a channel of its own (`weight_broadcast.py`), opened when it first takes weights."""

    def __init__(self, backend: Backend, *, timeout_s: float) -> None:
        self._backend = backend
        self._timeout_s = timeout_s
        self._channels: dict[str, WeightChannel] = {}
        self._held: dict[str, Tensor] = {}

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        # A copy: the model changes, and a server may come back later.
        self._held = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights}

    async def give(self, url: str, rpc: Rpc) -> None:
        if url not in self._channels:
            await self._open(url, rpc)
        channel, held = self._channels[url], self._held
        specs = to_json([TensorSpec.of(name, tensor) for name, tensor in held.items()])
        try:
            await asyncio.gather(
                asyncio.to_thread(weight_broadcast.send, channel, held), rpc("llmrl_receive", specs=specs)
            )
        except BaseException:
            self.forget(url)  # cut, so that the other side does not wait
            raise

    async def _open(self, url: str, rpc: Rpc) -> None:
        workers = len((await rpc("llmrl_leave"))["results"])
        place = httpx.URL(url)
        host = weight_broadcast.local_address(place.host, place.port or 80)
        listener = weight_broadcast.listen(host)
        rendezvous = Rendezvous(
            host=host,
            port=listener.getsockname()[1],
            size=1 + workers,
            backend=self._backend,
            timeout_s=self._timeout_s,
        )
        opening = asyncio.to_thread(WeightChannel, rendezvous, rank=0, device=_device(self._backend), listener=listener)
        self._channels[url], _ = await asyncio.gather(opening, rpc("llmrl_join", rendezvous=to_json(rendezvous)))

    def settle(self) -> None:
        pass

    def forget(self, name: str) -> None:
        channel = self._channels.pop(name, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        for url in list(self._channels):
            self.forget(url)


def _device(backend: Backend) -> Any:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
