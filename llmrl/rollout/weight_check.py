"""vLLM's worker extension: lets a server or an actor show checksums of the weights that it computes with.

Our servers run with it; another's is started with `--worker-extension-cls llmrl.rollout.weight_check.WeightCheck`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from llmrl.rollout.engine import Look

METHOD = "llmrl_checksums"


class WeightCheck:
    """Adds one call to a worker, which has `model_runner`."""

    model_runner: Any

    def llmrl_checksums(self, look: str) -> dict[str, int]:
        from llmrl.rollout.packed_weights import checksums

        return checksums(self.model_runner.get_model(), from_json(look))


def to_json(look: Look) -> str:
    return json.dumps(asdict(look))


def from_json(text: str) -> Look:
    fields = json.loads(text)
    shapes = {name: tuple(shape) for name, shape in fields.pop("shapes").items()}
    return Look(shapes=shapes, **fields)
