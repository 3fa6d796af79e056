"""Kill runs at many moments and compare: `python -m tests.durability` ends with {"kills": N, "equal": N}."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.durability.driver import EPISODE_POINTS, POINTS
from tests.durability.harness import (
    CASES,
    Case,
    Result,
    finished,
    killed_at,
    killed_at_random,
    options_for,
    write_recipe,
)
from tests.tiny import random_model, save_model

KILLS_PER_RUN = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[*CASES, "points", "episode-points"], help="default: all")
    parser.add_argument("--kills", type=int, default=KILLS_PER_RUN, help="random kills per case")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    kills = equal = 0
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "tiny", random_model())
        for name in arguments.cases:
            draw = random.Random(f"{arguments.seed}/{name}")
            work = Path(folder) / name
            if name.endswith("points"):
                found, good = at_points(work, model, name=name)
            else:
                found, good = at_random(work, model, CASES[name], kills=arguments.kills, draw=draw)
            print(json.dumps({"case": name, "kills": found, "equal": good}), flush=True)
            kills, equal = kills + found, equal + good
    print(json.dumps({"kills": kills, "equal": equal}))
    raise SystemExit(kills != equal)


def at_random(folder: Path, model: Path, case: Case, *, kills: int, draw: random.Random) -> tuple[int, int]:
    """(kills that struck, kills whose run ended equal to one that was never killed)."""
    whole = write_recipe(folder / "whole", model, case.changes)
    begin = time.monotonic()
    expected = finished(whole, case)
    whole_s = time.monotonic() - begin
    training_s = sum(dict(row).get("time/step", 0.0) for row in _rows(whole))
    struck = equal = 0
    for attempt in range(10 * kills):
        if struck >= kills:
            break
        recipe = write_recipe(folder / f"killed-{attempt}", model, case.changes)
        hits = killed_at_random(
            recipe, case, kills=min(KILLS_PER_RUN, kills - struck), whole_s=whole_s, training_s=training_s, draw=draw
        )
        equal += hits * (_ended(recipe, case) == expected)
        struck += hits
    return struck, equal


def at_points(folder: Path, model: Path, *, name: str = "points") -> tuple[int, int]:
    """One run, killed once at every place of `POINTS`, or of `EPISODE_POINTS` for name="episode-points"."""
    if name == "points":
        case, points = replace(CASES["float32"], name=name, changes={"train.steps": 60}), POINTS
    else:
        case, points = replace(CASES["episodes"], name=name), EPISODE_POINTS
    expected = finished(write_recipe(folder / "whole", model, case.changes), case)
    recipe = write_recipe(folder / "killed", model, case.changes)
    for point in points:
        print(f"  {point}", flush=True)
        killed_at(point, recipe)
    return len(points), len(points) * (_ended(recipe, case) == expected)


def _ended(recipe: Path, case: Case) -> Result:
    return finished(recipe, case, *options_for(recipe.parent / "run"))


def _rows(recipe: Path) -> list[dict[str, object]]:
    from llmrl.train.folder import read_metrics

    return read_metrics(recipe.parent / "run")


if __name__ == "__main__":
    main()
