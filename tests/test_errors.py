"""What people do wrong: each mistake gives a short message that says what to do, and the right exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmrl import __version__
from llmrl.cli import app, main

ROOT = Path(__file__).parent.parent
RECIPE = str(ROOT / "recipes" / "arithmetic" / "grpo.yaml")
Answer = tuple[int, str, str]  # exit code, stdout, stderr
Llmrl = Callable[..., Answer]


@pytest.fixture
def llmrl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Llmrl:
    """Run the command in `tmp_path` as a shell would; a traceback would come through as the exception itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "judge", raising=False)  # another test's file of that name

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["llmrl", *arguments])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return int(str(code or 0)), said.out, said.err

    return run


OVERRIDES = [
    ("train.stepz=3", ["train.stepz", "unknown key", "did you mean 'steps'?"]),
    ("trian.steps=3", ["trian", "did you mean 'train'?"]),
    ("reward.exact.weigth=1", ["reward.exact.weigth", "did you mean 'weight'?"]),
    ("train.steps=many", ["train.steps", "must be a whole number", "'many'"]),
    ("train.steps=0", ["train.steps", "must be greater than 0", "got 0"]),
    ("train.lr=fast", ["train.lr", "must be a number"]),
    ("model.dtype=fp16", ["model.dtype", "'bfloat16' or 'float32'"]),
    ("algo=grpo", ["algo", "section of `key: value` lines"]),
    ("train.steps", ["'train.steps'", "section.key=value"]),
    ("train.steps.x=3", ["train.steps.x=3", "steps holds"]),
    ("train.steps=[1", ["train.steps=[1", "not valid YAML", "quote it"]),
    ("data.args={low:1}", ["space after the colon"]),
    ("algo.name=gpro", ["algo.name='gpro'", "did you mean 'grpo'?"]),
    ("algo.name=nothere:Algo", ["nothere:Algo", "cannot be imported"]),
    ("algo.clip_hihg=1", ["algo.clip_hihg", "did you mean 'clip_high'?"]),
    ("algo.clip_high=x", ["algo.clip_high", "must be a number", "'x'"]),
    ("algo.clip_high=-1", ["clip_high=-1", "0 or more"]),
    ("rollout.group_size=1", ["rollout.group_size=1", "zero advantage", ">= 2"]),
    ("rollout.max_tokens=100", ["rollout.max_tokens=100", "164", "model.max_length=128"]),
    ("train.minibatches=3", ["train.minibatches=3", "multiple"]),
    ("reward.exact.name=Exact", ["reward.exact", "'package.module:name'"]),
    ("reward.exact.name=llmrl.rewards.exact_number:Exact", ["reward.exact", "has no 'Exact'"]),
    ("reward.exact.name=llmrl.rewards.exact_number:ExactNumbr", ["did you mean 'ExactNumber'?"]),
    ("reward.exact.name=nothere:f", ["reward.exact", "No module named 'nothere'"]),
    ("reward.exact.name=broken:f", ["reward.exact", "broken:f", "SyntaxError"]),
    ("reward.exact.args.oops=1", ["reward.exact.args", "'oops'"]),
    ("model.path=/no/such/folder", ["/no/such/folder"]),
    ("model.path=smolm2-135m", ["smolm2-135m", "did you mean 'smollm2-135m'?"]),
    ("data.source=adition", ["adition", "did you mean 'addition'"]),
    ("data.source=nothere.jsonl", ["nothere.jsonl"]),
    ("data.args.hgih=3", ["hgih", "did you mean 'high'?"]),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_a_wrong_override_is_named_and_exits_with_2(llmrl: Llmrl, override: str, words: list[str]) -> None:
    Path("broken.py").write_text("def f(:\n")
    code, out, err = llmrl("plan", RECIPE, override)
    assert code == 2, out + err
    assert all(word in err for word in words), err
    assert len(err) < 700, "short enough to be read"


def test_a_misspelt_recipe_gets_the_nearest_one(llmrl: Llmrl) -> None:
    code, _, err = llmrl("train", "recipes/arithmetic/gpro.yaml")
    assert (code, "did you mean recipes/arithmetic/grpo.yaml?" in err) == (2, True)


def test_a_file_that_is_no_recipe_is_refused(llmrl: Llmrl) -> None:
    Path("list.yaml").write_text("- 1\n")
    Path("broken.yaml").write_text("a: b: c\n")
    assert "holds no recipe" in llmrl("plan", "list.yaml")[2]
    code, _, err = llmrl("plan", "broken.yaml")
    assert (code, "not valid YAML" in err) == (2, True)


def test_a_malformed_row_is_named_by_file_and_line(llmrl: Llmrl) -> None:
    Path("rows.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n{"prompt": "2+2?"\n')
    code, _, err = llmrl("plan", RECIPE, "data.source=rows.jsonl", "data.args={}")
    assert (code, "rows.jsonl:2" in err) == (2, True)
    Path("rows.jsonl").write_text('{"qestion": "1+1?"}\n')
    code, _, err = llmrl("plan", RECIPE, "data.source=rows.jsonl", "data.args={}")
    assert code == 2
    assert "did you mean" not in err or "qestion" in err
    assert "data.columns.prompt" in err


def test_knobs_of_a_generator_do_not_fit_a_file(llmrl: Llmrl) -> None:
    Path("rows.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    code, _, err = llmrl("plan", RECIPE, "data.source=rows.jsonl")
    assert (code, "set data.args={}" in err) == (2, True)


@pytest.mark.parametrize("command", [["report"], ["samples"], ["hash"], ["replay", "--step", "1"]])
def test_commands_on_a_run_want_a_run_folder(llmrl: Llmrl, command: list[str]) -> None:
    Path("runs/mine").mkdir(parents=True)
    code, _, err = llmrl(*command, "runs/mine")
    assert (code, "is not a run folder" in err) == (2, True)
    code, _, err = llmrl(*command, "runs/mien")
    assert (code, "no run folder at runs/mien; did you mean runs/mine?" in err) == (2, True)
    code, _, err = llmrl(*command, "mine")
    assert (code, "no run folder at mine; did you mean runs/mine?" in err) == (2, True)


def test_the_version_and_the_help_have_their_usual_names(llmrl: Llmrl) -> None:
    assert llmrl("--version") == (0, f"llmrl {__version__}\n", "")
    assert llmrl("-h") == llmrl("--help") and llmrl("plan", "-h")[0] == 0


def test_a_column_that_is_called_as_answers_are_is_pointed_out(llmrl: Llmrl) -> None:
    rows = [json.dumps({"question": f"What is {n} + 1?", "solution": str(n + 1)}) for n in range(60)]
    Path("rows.jsonl").write_text("\n".join(rows))
    plan = ["plan", RECIPE, "data.source=rows.jsonl", "data.args={}"]
    told = "".join(llmrl(*plan)[1].split())
    assert "no row has an `answer`, and there is a column 'solution'".replace(" ", "") in told.replace("│", "")
    assert "norowhas" not in "".join(llmrl(*plan, "data.columns.answer=solution")[1].split())


def test_wrong_numbers_and_commands_are_refused_by_the_command_line() -> None:
    shell = CliRunner()
    assert shell.invoke(app, ["samples", ".", "-n", "0"]).exit_code == 2
    assert shell.invoke(app, ["replay", ".", "--step", "0"]).exit_code == 2
    answer = shell.invoke(app, ["trian"])
    assert answer.exit_code == 2
    assert "Did you mean" in answer.output


def test_an_unknown_catalogue_name_lists_what_there_is(llmrl: Llmrl) -> None:
    code, _, err = llmrl("models", "pull", "smollm3")
    assert (code, "smollm2-135m" in err) == (2, True)


def test_a_plan_says_how_much_will_happen(llmrl: Llmrl) -> None:
    code, out, err = llmrl("plan", RECIPE, "train.steps=3", "train.epochs=2", "train.minibatches=2")
    assert code == 0, err
    flat = " ".join(out.split())
    assert "384 samples" in flat, "3 steps of 16 prompts with 8 samples"
    assert "off-policy: 4 updates per rollout" in " ".join(flat.replace("│", " ").split())


def test_gold_answers_are_tried_on_the_reward(llmrl: Llmrl) -> None:
    Path("judge.py").write_text(REWARDS)
    code, out, err = llmrl("rewards", "check", RECIPE, "--limit", "50")
    assert (code, "50 rows, every gold answer gets full marks" in out) == (0, True), out + err
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "q{i}?", "answer": "about {i}"}}\n' for i in range(40)))
    code, out, err = llmrl("rewards", "check", RECIPE, "data.source=rows.jsonl", "data.args={}")
    assert code == 1, err
    assert "40 not_applicable" in out or "40 gold" in out, out
    code, _, err = llmrl("rewards", "check", RECIPE, "--part", "exat")
    assert (code, "did you mean 'exact'?" in err) == (2, True)


# ---- trainings: a tiny model, the reference engine, in this process


@pytest.fixture
def small(tiny_model: Path) -> Iterator[list[str]]:
    """Arguments of `llmrl train`; torch's threads are put back afterwards."""
    import torch

    threads = torch.get_num_threads()
    yield [
        RECIPE, f"model.path={tiny_model}", "model.dtype=float32", "rollout.engine=hf", "rollout.isolated=false",
        "rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=4", "train.steps=1", "eval.data.n=2",
        "train.deterministic=false", "data.limit=8", "name=small",
    ]  # fmt: skip
    torch.set_num_threads(threads)


REWARDS = """
from llmrl.types import Score

def raises(completions, **kwargs):
    raise RuntimeError("the judge [bold]sleeps")

def nan(completions, **kwargs):
    return [float("nan")] * len(completions)

def short(completions, **kwargs):
    return [1.0]

def bare(trajectory):
    return 1.0

def lengths(completions, answer, **kwargs):
    assert len(answer) == len(completions)
    return [float(i % 2) for i, _ in enumerate(completions)]
"""


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "raises raised RuntimeError: the judge [bold]sleeps"),
        ("nan", "nan returned nan; a reward must be finite"),
        ("short", "short returned 1 rewards for"),  # each worker process has a share of the four
        ("bare", "bare returned float '1.0', not a Score"),
    ],
)
def test_a_failing_reward_stops_the_run_with_3_and_its_reason(
    llmrl: Llmrl, small: list[str], function: str, reason: str
) -> None:
    Path("judge.py").write_text(REWARDS)
    code, _, err = llmrl("train", *small, f"reward.exact.name=judge:{function}", "eval.data.n=20")
    assert (code, "step 0: the reward failed on 20 of 20 held-out problems" in err) == (3, True)
    assert reason in err and not list(Path("runs/small/rollouts").glob("*"))
    code, _, err = llmrl("train", *small, f"reward.exact.name=judge:{function}", "eval={enabled: false}")
    assert code == 3, err
    assert "limits.max_reward_error_rate" in err
    assert reason in err
    assert "llmrl samples runs/small --step 1" in err
    assert json.loads(Path("runs/small/summary.json").read_text())["status"] == "failed"


def test_a_trl_reward_function_is_taken_as_it_is_and_its_run_is_guarded(llmrl: Llmrl, small: list[str]) -> None:
    Path("judge.py").write_text(REWARDS)
    code, out, err = llmrl("train", *small, "reward.exact.name=judge:lengths")
    assert code == 0, err
    assert "reward 0.500" in out
    assert "Loading weights" not in out + err, "other bars stay silent"

    code, _, err = llmrl("train", *small, "reward.exact.name=judge:lengths")
    assert (code, "--resume" in err and "--fresh" in err) == (2, True)

    code, _, err = llmrl("train", *small, "reward.exact.name=judge:nan", "train.steps=2", "--resume")
    assert (code, "reward.exact.name: was 'judge:lengths', is 'judge:nan'" in err) == (2, True)
    assert "train.steps" not in err, "a longer run is no other recipe"

    code, out, err = llmrl("samples", "runs/small", "--step", "7")
    assert (code, "no rollouts of step 7; stored: 1" in err) == (2, True)
    code, _, err = llmrl("replay", "runs/small", "--step", "7")
    assert (code, "no rollouts of step 7; stored are steps 1 to 1" in err) == (2, True)
    code, _, err = llmrl("chat", "runs/smal")
    assert (code, "there is no folder runs/smal; did you mean runs/small?" in err) == (2, True)
    code, out, _ = llmrl("hash", "runs/small")
    assert (code, out.split()[1]) == (0, "step-000001")


def test_a_run_that_failed_before_its_first_step_leaves_its_name_free(llmrl: Llmrl, small: list[str]) -> None:
    code, _, err = llmrl("train", *small, "data.max_prompt_tokens=3")
    assert (code, "raise data.max_prompt_tokens" in err) == (2, True)
    code, _, err = llmrl("train", *small, "model.max_length=4096")
    assert (code, "more than the 256 tokens" in err) == (2, True)


def test_resuming_needs_a_run_and_excludes_starting_over(llmrl: Llmrl, small: list[str]) -> None:
    code, _, err = llmrl("train", *small, "--resume")
    assert (code, "nothing to resume" in err) == (2, True)
    code, _, err = llmrl("train", *small, "--resume", "--fresh")
    assert (code, "exclude each other" in err) == (2, True)


def test_a_tracker_that_is_not_installed_is_said_before_anything_starts(llmrl: Llmrl, small: list[str]) -> None:
    if find_spec("trackio") is not None:
        pytest.skip("trackio is installed")
    code, _, err = llmrl("train", *small, "tracking.to=[trackio]")
    assert (code, "pip install 'llmrl[trackio]'" in err) == (2, True)
    assert not Path("runs").exists()


def test_metrics_reach_tensorboard(llmrl: Llmrl, small: list[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = llmrl("train", *small, "tracking.to=[tensorboard]")
    assert code == 0, err
    (events,) = Path("runs/small").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events))
    read.Reload()
    written = [json.loads(line) for line in Path("runs/small/metrics.jsonl").read_text().splitlines()]
    (row,) = [line for line in written if line["kind"] == "train"]
    assert read.Scalars("reward/mean")[0].value == pytest.approx(row["reward/mean"], rel=1e-6)


def test_a_defect_keeps_its_traceback_even_if_it_is_named_like_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.checkpoint import CheckpointError as TorchsError

    from llmrl import cli
    from llmrl.errors import CheckpointError

    def fails_with(error: Exception) -> None:
        def app() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)
        cli.main()

    with pytest.raises(SystemExit) as ended:
        fails_with(CheckpointError("the disk is full"))
    assert ended.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
    with pytest.raises(TorchsError):
        fails_with(TorchsError("a defect that needs its traceback"))


EXIT_CODES = {
    2: ["ConfigError", "DataError", "CatalogError", "RunFolderError", "ReplayError", "EvalError"],
    3: ["LimitExceeded"],
    1: ["EngineError", "CheckpointError", "StorageError", "RankLost"],
}


def test_every_error_of_ours_says_how_the_command_ends() -> None:
    from llmrl import errors

    kinds = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    expected = {name: code for code, names in EXIT_CODES.items() for name in names}
    assert kinds == {"LlmrlError": 1, **expected}
