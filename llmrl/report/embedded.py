"""Chooses which stored samples the page carries, so that its size has a bound whatever the run's length.

Of some steps, evenly spread, the first whole groups are taken; a few rows of each kind that these lack (wrong,
truncated, failed) are added, so that every filter of the sample browser finds something if the step had it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmrl.report.figures import rounded
from llmrl.report.html import clipped
from llmrl.report.read import spread
from llmrl.report.stored import Sample, read_samples, rollout_files

MAX_STEPS = 16
ROWS_PER_STEP = 40
EXTRA_PER_KIND = 3
MAX_TEXT = 12_000
MAX_IMAGES = 500
THUMBNAIL = 160  # pixels of the longer edge
RIGHT_FROM = 0.5
KINDS = ("right", "wrong", "truncated", "error")


def kind_of(sample: Sample) -> str:
    """One of KINDS. `error`: the rollout or its reward failed, or there is no score; right: reward >= RIGHT_FROM."""
    if sample.status == "error" or sample.score_error or sample.score is None:
        return "error"
    if sample.status == "truncated":
        return "truncated"
    return "right" if sample.score >= RIGHT_FROM else "wrong"


def embedded_samples(run: Path, notes: list[str]) -> dict[str, Any]:
    """What the sample browser shows: `prompts` (each once), `rows` pointing at them, and how much was left out."""
    files = rollout_files(run)
    prompts: dict[tuple[str, str, str, tuple[int, ...]], int] = {}
    album = Album()
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, int]] = []
    for step in spread(list(files), MAX_STEPS):
        try:
            samples = read_samples(files[step], step=step)
        except ValueError as error:
            if str(error) not in notes:
                notes.append(str(error))
            continue
        chosen = choose(samples, limit=ROWS_PER_STEP)
        steps.append({"step": step, "shown": len(chosen), "of": len(samples)})
        for sample in chosen:
            texts = clipped(sample.prompt_text, MAX_TEXT), clipped(sample.answer, MAX_TEXT)
            key = (sample.prompt_id, *texts, tuple(album.place(image) for image in sample.images))
            rows.append(row_of(sample, prompts.setdefault(key, len(prompts))))
    return {
        "steps": steps,
        "stored": len(files),
        "prompts": [list(key) for key in prompts],
        "rows": rows,
        "images": album.images,
        "rightFrom": RIGHT_FROM,
    }


class Album:
    """The images of a page, each once, as PNG data URIs; large ones are made smaller, and beyond MAX_IMAGES they are "".

    Rollouts are untrusted: a file enters only as what Pillow read from it and wrote again.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self._places: dict[Path, int] = {}

    def place(self, file: Path) -> int:
        """Where in `images` the file is."""
        if file not in self._places:
            self._places[file] = len(self.images)
            self.images.append(_data_uri(file) if len(self.images) < MAX_IMAGES else "")
        return self._places[file]


def _data_uri(file: Path) -> str:
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG"]) as stored, io.BytesIO() as written:
            image = stored.convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(written, format="PNG", optimize=True)
            return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
    except (OSError, ValueError, Image.DecompressionBombError):  # gone, damaged, or enormous
        return ""


def choose(samples: Sequence[Sample], *, limit: int) -> list[Sample]:
    """Whole groups in stored order while they fit into `limit` (the first always), then a few rows of missing kinds."""
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.prompt_id, []).append(i)
    taken: list[int] = []
    for members in groups.values():
        if not taken:
            taken += members[:limit]
        elif len(taken) + len(members) <= limit:
            taken += members
    have = {kind_of(samples[i]) for i in taken}
    for kind in KINDS:
        if kind not in have:
            rest = (i for i, sample in enumerate(samples) if kind_of(sample) == kind)
            taken += [i for i, _ in zip(rest, range(EXTRA_PER_KIND))]
    return [samples[i] for i in taken]


def row_of(sample: Sample, prompt: int) -> dict[str, Any]:
    """One browser row, with short keys and without what is empty."""
    row = {
        "step": sample.step,
        "prompt": prompt,
        "sample": sample.sample,
        "kind": kind_of(sample),
        "text": clipped(sample.text, MAX_TEXT),
        "status": sample.status if sample.status != "done" else "",
        "statusReason": clipped(sample.status_reason, MAX_TEXT),
        "score": rounded(sample.score),
        "parts": {name: rounded(value) for name, value in sample.parts.items()},
        "reason": clipped(sample.score_reason, MAX_TEXT),
        "told": {name: clipped(text, MAX_TEXT) for name, text in sample.told.items()},
        "error": clipped(sample.score_error, MAX_TEXT),
        "flags": list(sample.flags),
        "advantage": rounded(sample.advantage, 4),
        "tokens": sample.sampled,
        "logprob": rounded(sample.mean_logprob, 4),
        "versions": list(sample.version),
    }
    return {key: value for key, value in row.items() if value not in ("", [], {}, None)}
