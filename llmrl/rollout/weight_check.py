"""vLLM's worker extension: a server or an actor shows checksums of the weights that it computes with, and takes new ones
from a line (`wire.py`).

Our servers run with it; another's is started with `--worker-extension-cls llmrl.rollout.weight_check.WeightCheck`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from llmrl.rollout.engine import Look

METHOD = "llmrl_checksums"


class WeightCheck:
    """Adds calls to a worker, which has the attributes and `reload_weights` named here."""

    model_runner: Any
    rank: int
    device: Any
    reload_weights: Any
    llmrl_line: Any = None

    def llmrl_checksums(self, look: str) -> dict[str, int]:
        from llmrl.rollout.packed_weights import checksums

        return checksums(self.model_runner.get_model(), from_json(look))

    def llmrl_leave(self) -> None:
        """Cut an older line; every worker answers, which tells how many there are."""
        if self.llmrl_line is not None:
            self.llmrl_line.close()
            self.llmrl_line = None

    def llmrl_join(self, meeting: str) -> None:
        """Open this worker's end of a line from the trainer."""
        from llmrl.rollout import wire

        self.llmrl_line = wire.Line(wire.Meeting.from_json(meeting), rank=1 + self.rank, device=self.device)

    def llmrl_receive(self, parts: str) -> None:
        """Load the weights that come down the line."""
        from llmrl.rollout import wire

        coming = wire.receive(self.llmrl_line, wire.from_json(parts))
        self.reload_weights(weights_iterator=coming)
        for _ in coming:  # what the model did not ask for must leave the line too
            pass


def to_json(look: Look) -> str:
    return json.dumps(asdict(look))


def from_json(text: str) -> Look:
    fields = json.loads(text)
    shapes = {name: tuple(shape) for name, shape in fields.pop("shapes").items()}
    return Look(shapes=shapes, **fields)
