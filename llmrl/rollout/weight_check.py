"""vLLM's worker extension: a server or an actor shows checksums of the weights that it computes with, and takes new ones
from a channel (`weight_broadcast.py`).

Our servers run with it; another's is started with `--worker-extension-cls llmrl.rollout.weight_check.WeightCheck`.
"""

from __future__ import annotations

from typing import Any

from llmrl.rollout.as_json import from_json
from llmrl.rollout.engine import ChecksumRequest

METHOD = "llmrl_checksums"


class WeightCheck:
    """Adds calls to a worker, which has the attributes and `reload_weights` named here."""

    model_runner: Any
    rank: int
    device: Any
    reload_weights: Any
    llmrl_channel: Any = None

    def llmrl_checksums(self, request: str) -> dict[str, int]:
        from llmrl.rollout.packed_weights import checksums

        return checksums(self.model_runner.get_model(), from_json(ChecksumRequest, request))

    def llmrl_leave(self) -> None:
        """Cut an older channel; every worker answers, which tells how many there are."""
        if self.llmrl_channel is not None:
            self.llmrl_channel.close()
            self.llmrl_channel = None

    def llmrl_join(self, rendezvous: str) -> None:
        """Open this worker's end of a channel from the trainer."""
        from llmrl.rollout import weight_broadcast

        meeting = from_json(weight_broadcast.Rendezvous, rendezvous)
        self.llmrl_channel = weight_broadcast.WeightChannel(meeting, rank=1 + self.rank, device=self.device)

    def llmrl_receive(self, specs: str) -> None:
        """Load the weights that come down the channel."""
        from llmrl.rollout import weight_broadcast

        coming = weight_broadcast.receive(self.llmrl_channel, from_json(list[weight_broadcast.TensorSpec], specs))
        self.reload_weights(weights_iterator=coming)
        for _ in coming:  # what the model did not ask for must leave the channel too
            pass
