"""Reads the rollouts a run stored, `rollouts/step-000010.parquet`: one row per trajectory.

A column that an older or foreign writer left out reads as empty; a file that is no parquet is a ValueError.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrl.report.read import finite

MEDIA = "media"  # the folder of images beside the files
HASH = re.compile(r"^[0-9a-f]{64}$")
TEXTS = ("prompt_id", "prompt_text", "answer", "text", "status_reason", "score_reason", "score_error")  # columns
ROLLOUT_FILE = re.compile(r"^step-(\d+)\.parquet$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One stored trajectory, as a reader sees it. `mean_logprob` is the sampler's, in nats per sampled token; `told` are the
    texts that an environment kept beside the completion (a draft, what another model made of it).
    """

    step: int
    prompt_id: str
    prompt_text: str
    answer: str
    text: str
    status: str
    status_reason: str
    version: tuple[int, int]
    sample: int
    score: float | None
    parts: Mapping[str, float | None]
    score_reason: str
    score_error: str
    flags: tuple[str, ...]
    advantage: float | None
    sampled: int
    mean_logprob: float | None
    told: Mapping[str, str] = field(default_factory=dict)
    images: tuple[Path, ...] = ()  # PNG files named by their hash, in the order in which the prompt shows them


def image_size(file: Path) -> tuple[int, int] | None:
    """Width and height of a stored image; None if the file is gone or no PNG."""
    try:
        with file.open("rb") as stored:
            head = stored.read(24)
    except OSError:
        return None
    return struct.unpack(">II", head[16:24]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else None


def rollout_files(path: Path) -> dict[int, Path]:
    """The stored rollouts of the run folder `path`: step -> parquet file, in step order."""
    folder = path / "rollouts"
    if not folder.is_dir():
        return {}
    found = [(int(m.group(1)), f) for f in folder.iterdir() if (m := ROLLOUT_FILE.match(f.name))]
    return dict(sorted(found))


def read_samples(file: Path, *, step: int) -> list[Sample]:
    """The trajectories of one parquet file, in stored order. Raises ValueError if it is not a readable parquet file."""
    table = _read_table(file)
    rows = _plain_rows(table)
    sampled, mean_logprobs = _token_sums(table)
    return [
        Sample(
            step=step,
            **{name: str(row.get(name) or "") for name in TEXTS},
            status=str(row.get("status") or "done"),
            version=(int(row.get("version_oldest") or 0), int(row.get("version_newest") or 0)),
            sample=int(row.get("sample") or 0),
            score=finite(row.get("score")),
            parts=_parts(row.get("parts")),
            flags=tuple(str(flag) for flag in row.get("flags") or ()),
            advantage=finite(row.get("advantage")),
            sampled=sampled[i],
            mean_logprob=mean_logprobs[i],
            images=tuple(file.parent / MEDIA / f"{name}.png" for name in row.get("media") or () if HASH.match(name)),
            told=_told(row.get("info"), str(row.get("text") or "")),
        )
        for i, row in enumerate(rows)
    ]


def read_scores_and_lengths(file: Path) -> tuple[list[float | None], list[int]]:
    """Each trajectory's score and number of sampled tokens: what the distributions need. Raises as read_samples."""
    table = _read_table(file, only=("score", "mask"))
    sampled, _ = _token_sums(table)
    if "score" not in table.column_names:
        return [None] * table.num_rows, sampled
    return [finite(value) for value in table.column("score").to_pylist()], sampled


def _read_table(file: Path, only: Sequence[str] | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(file).names
        return pq.read_table(file, columns=[name for name in only if name in present] if only else None)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def _plain_rows(table: Any) -> list[dict[str, Any]]:
    """Rows without the per-token columns, which nobody reads as Python objects."""
    heavy = {"tokens", "mask", "logprobs", "step", "columns"}
    rows: list[dict[str, Any]] = table.select([n for n in table.column_names if n not in heavy]).to_pylist()
    return rows or [{} for _ in range(table.num_rows)]


def _token_sums(table: Any) -> tuple[list[int], list[float | None]]:
    """Per row: the number of sampled tokens and the mean log-probability of those (None where there is none)."""
    import numpy as np

    if "mask" not in table.column_names or table.num_rows == 0:
        return [0] * table.num_rows, [None] * table.num_rows
    mask, offsets = _flat(table, "mask")
    counts = np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[offsets])
    means: list[float | None] = [None] * table.num_rows
    if "logprobs" in table.column_names:
        logprobs, other = _flat(table, "logprobs")
        if np.array_equal(offsets, other):
            kept = np.where(mask, logprobs, 0.0).astype(np.float64)
            sums = np.diff(np.concatenate([[0.0], np.cumsum(kept)])[offsets])
            means = [finite(float(s / c)) if c else None for s, c in zip(sums, counts)]
    return [int(count) for count in counts], means


def _flat(table: Any, name: str) -> tuple[Any, Any]:
    """A list column as one flat array and the row offsets into it ([rows + 1])."""
    import numpy as np

    lists = table.column(name).combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))])
    return lists.flatten().to_numpy(zero_copy_only=False), offsets.astype(np.int64)


def _told(text: str | None, own: str) -> dict[str, str]:
    """The texts of a row's `info` that are not its own completion again."""
    found = json.loads(text or "{}").items()
    return {str(name): value for name, value in found if isinstance(value, str) and value.strip() and value != own}


def _parts(text: str | None) -> dict[str, float | None]:
    return {str(name): finite(value) for name, value in json.loads(text or "{}").items()}
