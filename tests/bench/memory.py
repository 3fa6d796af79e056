"""Peak memory of a training step: `python -m tests.bench.memory --model FOLDER`.

Every side of `vs_trl` runs in a fresh process (ours with all its children); resident memory at its highest, GiB.
"""

from __future__ import annotations

import argparse
import json

from tests.bench.contestants import add_options
from tests.bench.vs_trl import Side


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=1, help="steps of each side")
    parser.add_argument("--sides", nargs="+", default=["ours", "trl_best"], help="also trl_default")
    parser.add_argument("--verbose", action="store_true", help="show what the sides print")
    options = parser.parse_args()
    figures = {}
    for name in options.sides:
        side = Side(name, options.rounds, options)
        try:
            for _ in range(options.rounds):
                side.step()
        finally:
            side.close()
        figures[name] = side.found[-1]["gib"]
        print(f"{name:12} {figures[name]:6.2f} GiB  {figures[name] / figures[options.sides[0]]:5.2f} x")
    print(json.dumps({"bench": "memory", "mode": options.mode, **figures}))


if __name__ == "__main__":
    main()
