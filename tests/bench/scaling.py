"""Where cost grows: `python -m tests.bench.scaling --model FOLDER` times generation and update over three sweeps.

One thing varies at a time: the group size (2 to 32), the completion (16 to 512 tokens) and the prompt (32 to 1,024).
`--full` runs the whole sweeps; by default each has its ends and a middle, within a few minutes. Every completion has
exactly its length, and every row trains. Generation is that of the native engine.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from tests.bench.contestants import add_dtype, add_model
from tests.bench.limits import Training, uneven_batch

BASE = {"group_size": 8, "completion": 32, "prompt": 64}
SHORT = {"group_size": [2, 8, 32], "completion": [16, 64, 128], "prompt": [32, 256, 1024]}
FULL = {"group_size": [2, 4, 8, 16, 32], "completion": [16, 64, 128, 256, 512], "prompt": [32, 128, 256, 512, 1024]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaling", description=__doc__)
    add_model(parser)
    add_dtype(parser)
    parser.add_argument("--groups", type=int, default=2, help="prompts of a batch")
    parser.add_argument("--full", action="store_true", help="the whole sweeps")
    options = parser.parse_args()
    from llmrl.memory import keep_freed_memory

    keep_freed_memory()
    made = Training(options.model, options.dtype)
    engine = _engine(options.model, made.model)
    print(f"{'':24}{'tokens':>8}{'generate s':>12}{'update s':>10}{'ms/token':>10}")
    figures = []
    for name, values in (FULL if options.full else SHORT).items():
        for value in values:
            shape = BASE | {name: value}
            batch = uneven_batch(
                options.groups, shape["group_size"], shape["prompt"], shape["completion"], made.vocabulary
            )
            times = made.run(batch)
            update = times["forward"] + times["backward"] + times["update"]
            begin = time.perf_counter()
            _generate(engine, options.groups, shape, made.vocabulary)
            spent = time.perf_counter() - begin
            tokens = made.useful(batch)[0]
            print(f"{name:>16} {value:7d}{tokens:8d}{spent:12.2f}{update:10.2f}{1e3 * (spent + update) / tokens:10.1f}")
            figures.append([name, value, tokens, round(spent, 2), round(update, 2)])
    columns = ["varied", "value", "tokens", "generate_s", "update_s"]
    print(json.dumps({"bench": "scaling", "columns": columns, "rows": figures}))


def _engine(source: str, model: Any) -> Any:
    from llmrl.rollout.engine import EngineSettings
    from llmrl.rollout.native import NativeEngine

    return NativeEngine(EngineSettings(kind="native", model=source, max_length=2048), model=model)


def _generate(engine: Any, groups: int, shape: dict[str, int], vocabulary: int) -> None:
    from llmrl.types import Request, Sampling

    length = shape["completion"]
    engine.generate(
        [
            Request(
                tokens=tuple((31 * group + place) % vocabulary for place in range(shape["prompt"])),
                sampling=Sampling(max_tokens=length, min_tokens=length, seed=sample),
            )
            for group in range(groups)
            for sample in range(shape["group_size"])
        ]
    )


if __name__ == "__main__":
    main()
