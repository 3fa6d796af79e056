"""A reward that leaves a note about the process it runs in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrl.types import Score, Trajectory


@dataclass(frozen=True)
class NoteTheProcess:
    """Writes rank, world size and cores of its process into `folder`; the score is the share of small letters."""

    folder: str

    def __call__(self, trajectory: Trajectory) -> Score:
        note: dict[str, Any] = {"rank": os.environ["RANK"], "world": os.environ["WORLD_SIZE"]}
        note["cores"] = sorted(os.sched_getaffinity(0))
        (Path(self.folder) / f"rank-{note['rank']}.json").write_text(json.dumps(note))
        return Score(value=sum(letter.islower() for letter in trajectory.text) / max(1, len(trajectory.text)))
