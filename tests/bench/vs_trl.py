"""A training step of llmrl against one of TRL's GRPOTrainer: `python -m tests.bench.vs_trl --model FOLDER`.

The same model, prompts, sampling and loss; 8 prompts x 8 completions of at most 64 tokens. Each side is a process of
its own and the sides take turns, so that a busy machine slows all of them alike. The first round warms up and does not
count. `--mode natural` lets completions end where they end; `--mode equal` makes all of them 64 tokens long with
rewards that differ in every group. `agreement` compares both losses and gradients on one of our rollouts in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from tests.bench.contestants import add_options, passed_on

PHASES = ("generate", "reward", "update", "sync", "step")


class Side:
    """One contestant in its process."""

    def __init__(self, name: str, steps: int, options: argparse.Namespace, *, module: str = "contestants",
                 passed: Iterable[str] = ()) -> None:  # fmt: skip
        passed = passed or passed_on(options)
        command = [sys.executable, "-m", f"tests.bench.{module}", name, "--steps", str(steps), *passed]
        self.name = name
        self.found: list[dict[str, Any]] = []
        quiet = None if options.verbose else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
        )
        self._line()  # ready

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} died; run again with --verbose to see why")
        return json.loads(line)  # type: ignore[no-any-return]

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.found.append(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def median(self, key: str) -> float:
        """Over the rounds after the first."""
        return statistics.median(round_.get(key, 0.0) for round_ in self.found[1:] or self.found)


def main() -> None:
    options = _options()
    names = ["ours", *([] if options.skip_best else ["trl_best"]), *([] if options.skip_defaults else ["trl_default"])]
    sides = []
    try:
        for name in names:
            sides.append(Side(name, options.rounds + 1, options))
        for number in range(options.rounds + 1):
            for side in sides:
                side.step()
                print(f"round {number} {side.name:12} {side.found[-1]['time/step']:7.2f} s", flush=True)
    finally:
        for side in sides:
            side.close()
    figures = _report(sides, options)
    if not options.skip_agreement:
        from tests.bench.trl_agreement import compare

        figures["agreement"] = compare(options.model, sides[0].found[-1]["rows"])
    print(json.dumps(figures))


def _report(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    """Print the table; returns its figures."""
    mine = sides[0]
    print(f"\nmode {options.mode}, medians of {options.rounds} rounds, seconds")
    print(f"{'':12}" + "".join(f"{phase:>10}" for phase in PHASES) + f"{'tokens':>8}{'GiB':>7}{'ratio':>7}")
    figures: dict[str, Any] = {"bench": "vs_trl", "mode": options.mode, "rounds": options.rounds}
    for side in sides:
        times = {phase: round(side.median(f"time/{phase}"), 3) for phase in PHASES}
        pairs = zip(side.found[1:] or side.found, mine.found[1:] or mine.found)
        ratio = round(statistics.median(theirs["time/step"] / our["time/step"] for theirs, our in pairs), 2)
        tokens, gib = side.median("tokens"), side.median("gib")
        row = "".join(f"{times[phase]:10.2f}" for phase in PHASES)
        print(f"{side.name:12}{row}{tokens:8.0f}{gib:7.2f}{ratio:7.1f}")
        figures[side.name] = {**times, "tokens": tokens, "gib": gib, "ratio": ratio}
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.vs_trl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="steps of each side that count")
    parser.add_argument("--skip-defaults", action="store_true", help="leave out TRL at its defaults")
    parser.add_argument("--skip-best", action="store_true", help="leave out TRL at its best")
    parser.add_argument("--skip-agreement", action="store_true", help="do not compare losses and gradients")
    parser.add_argument("--verbose", action="store_true", help="show what the sides print")
    return parser.parse_args()


if __name__ == "__main__":
    main()
