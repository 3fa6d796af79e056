"""How new weights get to servers: through a folder that both sides see, or straight into their workers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from llmrl.rollout import wire
from llmrl.rollout.wire import Backend, Line, Meeting

if TYPE_CHECKING:
    from torch import Tensor


class Rpc(Protocol):
    """Calls a method of every worker of one server."""

    def __call__(self, method: str, **kwargs: str) -> Awaitable[Mapping[str, Any]]: ...


class WeightStore(Protocol):
    """Holds the newest weights, for engines that are there and those that come back."""

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Take the place of what was held, which is kept until `settle`: an engine may still be reading it."""
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
    """Broadcasts to each server over a line of its own (`wire.py`), opened when it first takes weights."""

    def __init__(self, backend: Backend, *, timeout_s: float) -> None:
        self._backend = backend
        self._timeout_s = timeout_s
        self._lines: dict[str, Line] = {}
        self._held: dict[str, Tensor] = {}

    def hold(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        # A copy: the model changes, and a server may come back later.
        self._held = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights}

    async def give(self, url: str, rpc: Rpc) -> None:
        if url not in self._lines:
            await self._open(url, rpc)
        line, held = self._lines[url], self._held
        parts = wire.to_json([wire.Part.of(name, tensor) for name, tensor in held.items()])
        try:
            await asyncio.gather(asyncio.to_thread(wire.send, line, held), rpc("llmrl_receive", parts=parts))
        except BaseException:
            self.forget(url)  # cut, so that the other side does not wait
            raise

    async def _open(self, url: str, rpc: Rpc) -> None:
        workers = len((await rpc("llmrl_leave"))["results"])
        place = httpx.URL(url)
        host = wire.local_address(place.host, place.port or 80)
        listener = wire.listen(host)
        meeting = Meeting(
            host=host,
            port=listener.getsockname()[1],
            size=1 + workers,
            backend=self._backend,
            timeout_s=self._timeout_s,
        )
        opening = asyncio.to_thread(Line, meeting, rank=0, device=_device(self._backend), listener=listener)
        self._lines[url], _ = await asyncio.gather(opening, rpc("llmrl_join", meeting=meeting.to_json()))

    def settle(self) -> None:
        pass

    def forget(self, name: str) -> None:
        line = self._lines.pop(name, None)
        if line is not None:
            line.close()

    def close(self) -> None:
        for url in list(self._lines):
            self.forget(url)


def _device(backend: Backend) -> Any:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
