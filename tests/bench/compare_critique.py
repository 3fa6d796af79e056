"""Critique-RL against its baselines: `python -m tests.bench.compare_critique` trains, evaluates, writes table and plot.

One supervised run makes the actor, which is also the critic that everybody starts from. Then, per seed: stage I, stage II
from its policy, and the refinement alone (indirect) for as many steps as both together. Every critic criticises the same
drafts (several a problem) of the same held-out problems through `llmrl eval --strategy critique`; majority
vote over drafts stands beside them with its tokens, and refinements with an oracle's and with empty critiques say what the
actor can do with a critique. Finished runs are skipped and stopped ones resumed. `--tiny` only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.bench.compare import train_recipe
from tests.bench.compare_critique_report import write_report

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes" / "critique"
SEEDS = (0, 1, 2)
DRAFTS = 4  # of a problem, in the final evaluation
HEAT = 1.3  # temperature of drafts: at 0.7 the actor is right 68 % of the time, at 1.3 56 %; there must be something to mend
METHODS = ("stage_one", "stage_two", "indirect")
TITLES = {
    "stage_one": "stage I (verdict)", "stage_two": "stage I + II", "indirect": "indirect (refinement alone)",
    "sft": "SFT critic (self-refine)", "oracle": "oracle critique", "none": "empty critique",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done."""

    sft_steps: int = 80
    steps: int = 12  # of a stage; of the indirect baseline twice as many
    every: int = 4
    held_out: int = 48  # during training
    problems: int = 100  # at the end


TINY = Size(sft_steps=2, steps=1, every=1, held_out=4, problems=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One trained critic. `start` is the folder of the policy it starts from."""

    method: str
    seed: int
    folder: Path
    start: Path
    actor: Path
    size: Size
    more: tuple[str, ...] = ()

    @property
    def changes(self) -> list[str]:
        """The overrides of its recipe."""
        steps = self.size.steps * (2 if self.method == "indirect" else 1)
        return [
            f"name={self.folder.name}", f"runs_dir={self.folder.parent}", f"seed={self.seed}", "stages=[]",
            f"model.path={self.start}", f"engines.actor.model={self.actor}", f"train.steps={steps}",
            f"train.save_every={self.size.every}", "train.best=''", "train.keep_best=false", f"env.args.temperature={HEAT}",
            f"eval.every={self.size.every}", f"eval.data.n={self.size.held_out}", *self.more,
        ]  # fmt: skip

    @property
    def policy(self) -> Path:
        """Its last policy."""
        (last,) = (self.folder / "checkpoints").glob("step-*")
        return last / "policy"


def sft_run(folder: Path, size: Size, more: Sequence[str]) -> Path:
    """The actor's folder, trained if it is not there. Raises SystemExit if that fails."""
    changes = [f"name={folder.name}", f"runs_dir={folder.parent}", f"train.steps={size.sft_steps}", *more]
    if not train_recipe(
        RECIPES / "sft.yaml", folder, [*changes, "train.warmup_steps=1", f"eval.data.n={size.held_out}"]
    ):
        raise SystemExit(f"the supervised run failed; {folder.with_suffix('.log')} says why")
    return folder / "checkpoints" / f"step-{size.sft_steps:06d}" / "policy"


def trained(folder: Path, actor: Path, size: Size, seeds: Sequence[int], more: tuple[str, ...]) -> Iterator[Run]:
    """Every run that is finished, a seed at a time; those that are not are trained first."""
    for seed in seeds:
        common: dict[str, Any] = {"seed": seed, "actor": actor, "size": size, "more": more}
        first = Run(method="stage_one", folder=folder / f"stage_one-{seed}", start=actor, **common)
        other = Run(method="indirect", folder=folder / f"indirect-{seed}", start=actor, **common)
        if train_recipe(RECIPES / "stage_one.yaml", first.folder, first.changes):
            yield first
            second = Run(method="stage_two", folder=folder / f"stage_two-{seed}", start=first.policy, **common)
            if train_recipe(RECIPES / "stage_two.yaml", second.folder, second.changes):
                yield second
        if train_recipe(RECIPES / "indirect.yaml", other.folder, other.changes):
            yield other


def prompts_of_recipe() -> dict[str, str]:
    """The critic's and the refinement's prompt."""
    args = yaml.safe_load((RECIPES / "sft.yaml").read_text())["data"]["args"]
    return {"critic_prompt": args["critic"], "refine_with": args["refine_with"]}


def evaluated(actor: Path, critic: Path, out: Path, size: Size, drafts: Path | None) -> None:
    """Drafts of the actor, critiques of `critic`, refinements: llmrl eval, in `out`. `drafts` is an evaluation that has
    drawn the drafts already.
    """
    from llmrl.eval.evaluate import evaluate
    from llmrl.eval.plan import Options

    if drafts is not None and not (out / "chains.jsonl").is_file():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(drafts / "chains.jsonl", out / "chains.jsonl")
    args = {"critic": str(critic), "max_tokens": 64, **prompts_of_recipe()}
    options = Options(
        samples=DRAFTS, temperature=HEAT, top_p=1.0, limit=size.problems, max_tokens=48, max_length=320,
        strategies=("critique", "majority"), strategy_args=args,
    )  # fmt: skip
    evaluate(str(actor), ["chains"], out=out, options=options, engine=native)


def native(settings: Any) -> Any:
    """The engine of an evaluation on a CPU: no second process, no start-up."""
    from llmrl.rollout.native import NativeEngine

    return NativeEngine(replace(settings, kind="native", max_sequences=256))


def bounds(actor: Path, drafts: Path, out: Path) -> None:
    """What the actor makes of an oracle's critiques and of empty ones: oracle.json and none.json, rows as the metrics take
    them.
    """
    from llmrl.data.conversation import Renderer
    from llmrl.data.critiques import chain_of, critique, first_wrong
    from llmrl.envs.critique import refine_messages
    from llmrl.eval.records import read_records
    from llmrl.eval.results import right
    from llmrl.policy.model import load_tokenizer
    from llmrl.rewards.critique import verdict
    from llmrl.rewards.exact_number import parse_number
    from llmrl.rollout.engine import EngineSettings
    from llmrl.types import Request, Sampling

    if all((out / f"{name}.json").is_file() for name in ("oracle", "none")):
        return
    _, records = read_records(drafts / "chains.jsonl")
    tokenizer = load_tokenizer(str(actor))
    renderer, engine = Renderer(tokenizer), native(EngineSettings(model=str(actor), max_length=320))
    asked = [(record, sample) for record in records for sample in record.samples]
    for name in ("oracle", "none"):
        said = []
        for record, sample in asked:
            chain = chain_of(record.prompt)
            said.append(critique(chain, first_wrong(chain, sample.text)) if name == "oracle" else "")
        requests = []
        for (record, sample), text in zip(asked, said, strict=True):
            shown = re.findall(r"Compute [^.]+ step by step\.", record.prompt)[-1]
            asked_first = ({"role": "user", "content": shown},)
            turns = refine_messages(asked_first, sample.text, text, prompts_of_recipe()["refine_with"])
            requests.append(Request(tokens=renderer.first(turns)[0], sampling=Sampling(max_tokens=48, temperature=0.0)))
        rows = []
        for (record, sample), text, found in zip(asked, said, engine.generate(requests), strict=True):
            answer = parse_number(found.text.rpartition("The answer is")[2].strip().rstrip("."))
            rows.append([right(sample), answer == parse_number(record.gold), verdict(text)])
        (out / f"{name}.json").write_text(json.dumps(rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compare_critique", help="where the runs lie")
    parser.add_argument("--model", default="smollm2-135m", help="what the supervised run starts from")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="at most so many")
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs")
    parser.add_argument("--no-write", action="store_true", help="leave recipes/critique/README.md as it is")
    parser.add_argument("changes", nargs="*", help="overrides of every recipe, such as train.threads=1")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no training outlives it
    folder, size, more = arguments.runs.resolve(), TINY if arguments.tiny else Size(), tuple(arguments.changes)
    actor = sft_run(folder / "sft", size, (f"model.path={arguments.model}", *more))
    drafts = folder / "eval-sft"
    evaluated(actor, actor, drafts, size, None)
    bounds(actor, drafts, folder)
    done = []
    for run in trained(folder, actor, size, SEEDS[: arguments.seeds], more):
        evaluated(actor, run.policy, run.folder / "eval", size, drafts)
        done.append(run)
    write_report(RECIPES, folder, done, TITLES, write=not arguments.no_write)


if __name__ == "__main__":
    main()
