"""From names to results.json with a tiny real model, and every way in which a user can ask for the impossible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmrl.errors import EvalError
from llmrl.eval.cli import app
from llmrl.eval.evaluate import evaluate, evaluate_all
from llmrl.eval.models import find_models
from llmrl.eval.plan import Options
from llmrl.eval.report import write_reports
from llmrl.eval.results import read_results
from llmrl.rollout.engine import EngineSettings
from tests.eval.fakes import FakeEngine, byte_tokenizer

HF = Options(engine="hf", dtype="float32", samples=2, max_tokens=4, limit=3)


def tiny_model(folder: Path, *, chat: bool = True) -> Path:
    """A Llama of 8 dimensions with random weights and a byte tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def _in_process(settings: EngineSettings) -> Any:
    from llmrl.rollout.hf import HFEngine

    return HFEngine(settings)


def test_a_real_model_is_evaluated_reproducibly_and_resumes_for_free(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    ran = [
        evaluate(str(model), ["addition"], out=tmp_path / name, options=HF, engine=_in_process) for name in ("a", "b")
    ]
    assert ran[0].tasks == ran[1].tasks
    assert (tmp_path / "a" / "addition.jsonl").read_bytes() != b""
    (task,) = ran[0].tasks
    assert (task.questions, task.samples, task.tokens.longest) == (3, 2, 4)
    assert task.settings["data"]["available"] == 200
    assert "Answer with the number only." in task.example_prompt
    assert read_results(tmp_path / "a") == ran[0]

    def never(settings: EngineSettings) -> Any:
        raise AssertionError("an engine was started for nothing")

    again = evaluate(str(model), ["addition"], out=tmp_path / "a", options=HF, engine=never)
    assert again.tasks == ran[0].tasks
    with pytest.raises(EvalError, match="other settings"):
        evaluate(str(model), ["addition"], out=tmp_path / "a", options=replace(HF, seed=1), engine=never)
    fresh = replace(HF, seed=1, restart=True)
    assert evaluate(str(model), ["addition"], out=tmp_path / "a", options=fresh, engine=_in_process).tasks


def test_one_sample_is_greedy_and_several_are_drawn_as_the_task_says(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    engines: list[FakeEngine] = []

    def make(settings: EngineSettings) -> FakeEngine:
        engines.append(FakeEngine(lambda number, seed: "1"))
        return engines[-1]

    for options in (Options(limit=2), Options(limit=2, samples=2), Options(limit=2, temperature=0.3, top_p=0.5)):
        evaluate(model, ["addition"], out=tmp_path / str(len(engines)), options=options, engine=make)
    drawn = [(e.asked[0].sampling.temperature, e.asked[0].sampling.top_p, len(e.asked)) for e in engines]
    assert drawn == [(0.0, 1.0, 2), (0.6, 0.95, 4), (0.3, 0.5, 2)]


def test_all_checkpoints_of_a_run_are_evaluated_in_order(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 9, 100):
        tiny_model(run / "checkpoints" / f"step-{step:06d}" / "policy")
    (run / "checkpoints" / "step-000200").mkdir()  # being written
    assert [model.step for model in find_models(str(run))] == [100]
    found = find_models(str(run), checkpoints="all")
    assert [(model.name, model.step) for model in found] == [(f"run/step-{step}", step) for step in (9, 10, 100)]
    assert find_models(str(run / "checkpoints" / "step-000010"))[0].step == 10
    out = tmp_path / "out"
    done = evaluate_all([str(run)], ["addition"], out=out, options=HF, checkpoints="all", engine=_in_process)
    assert [folder.name for folder, _ in done] == ["run-step-9", "run-step-10", "run-step-100"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index("| run/step-9 |") < text.index("| run/step-100 |")


def test_a_base_model_runs_in_plain_mode_with_a_note(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model", chat=False))
    notes: list[str] = []
    found = evaluate(model, ["addition"], out=tmp_path / "out", options=HF, engine=_in_process, say=notes.append)
    assert found.tasks[0].settings["prompt"]["mode"] == "plain"
    assert any("no chat template" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "tasks", "reason"),
    [
        (Options(samples=0), ["addition"], "samples=0"),
        (Options(samples=4, temperature=0.0), ["addition"], "would all be the same"),
        (Options(samples=4, ks=(8,)), ["addition"], "k=8 with samples=4: pass@k and maj@k need at least k samples"),
        (Options(ks=(0,)), ["addition"], "k=0 with samples=1"),
        (Options(samples=2, strategies=("best_of_n",)), ["addition"], "chooses by a score; give --scorer"),
        (Options(temperature=-1.0), ["addition"], "temperature=-1"),
        (Options(max_tokens=-5), ["addition"], "max_tokens=-5"),
        (Options(max_length=10), ["addition"], "the longest prompt has"),
        (Options(), [], "no task"),
        (Options(), ["addition", "addition"], "named twice"),
        (Options(), ["adition"], "did you mean 'addition'"),
        (Options(shots=2), ["addition"], "no worked examples"),
    ],
)
def test_impossible_wishes_are_refused_before_an_engine_starts(
    tmp_path: Path, options: Options, tasks: list[str], reason: str
) -> None:
    model = str(tiny_model(tmp_path / "model"))

    def make(settings: EngineSettings) -> FakeEngine:
        raise AssertionError("an engine was started")

    with pytest.raises(EvalError, match=reason):
        evaluate(model, tasks, out=tmp_path / "out", options=options, engine=make)


def test_models_that_are_none_say_so(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(EvalError, match="has no checkpoint with a model"):
        find_models(str(tmp_path / "run"))
    with pytest.raises(EvalError, match="there is no folder"):
        find_models(str(tmp_path / "nowhere"))
    with pytest.raises(EvalError, match="is no run folder"):
        find_models("smollm2-135m", checkpoints="all")
    with pytest.raises(EvalError, match=r"is .* the --out folder of an evaluation"):
        read_results(tmp_path / "run")


@pytest.mark.slow
def test_the_command_evaluates_with_an_engine_in_its_own_process(tmp_path: Path) -> None:
    arguments = [
        "--model",
        str(tiny_model(tmp_path / "model")),
        "--tasks",
        "addition",
        "--limit",
        "4",
        "--samples",
        "2",
    ]
    more = ["--engine", "hf", "--dtype", "float32", "--max-tokens", "4", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert "| addition | 4 × 2 | " in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"addition.jsonl", "results.json", "report.html"}


def test_a_k_of_ones_own_is_reported_too(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    options = replace(HF, samples=6, ks=(3, 5))
    engine = FakeEngine(lambda number, seed: str((seed or 0) % 20))
    (task,) = evaluate(model, ["addition"], out=tmp_path / "out", options=options, engine=lambda s: engine).tasks
    assert [name for name in task.metrics if name.startswith("pass@")] == [f"pass@{k}" for k in (1, 2, 3, 4, 5, 6)]


def test_a_verifier_that_cannot_be_built_is_one_message(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    for number, (verifier, options, reason) in enumerate(
        [
            ("llmrl.rewards.nothing:Here", {}, "'llmrl.rewards.nothing:Here' cannot be imported"),
            ("llmrl.rewards.exact_number:Exakt", {}, "has no 'Exakt'"),
            ("llmrl.rewards.exact_number:ExactNumber", {"tolerence": 1}, "tolerence"),
        ]
    ):
        task = {"name": f"own{number}", "data": "rows.jsonl", "verifier": verifier, "options": options}
        (tmp_path / "own.yaml").write_text(json.dumps(task))
        arguments = ["--model", model, "--tasks", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert f"own{number}: its verifier cannot be built" in result.output and reason in result.output


def test_a_server_that_is_not_there_and_a_full_disk_are_failures_of_the_run(tmp_path: Path) -> None:
    start = ["--model", str(tiny_model(tmp_path / "model")), "--tasks", "addition", "--limit", "2"]
    result = CliRunner().invoke(app, [*start, "--endpoint", "ftp://x", "--out", str(tmp_path / "a")])
    assert result.exit_code == 1 and "is no URL" in result.output
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, [*start, "--out", str(tmp_path / "file" / "below")])
    assert result.exit_code == 1 and "NotADirectoryError" in result.output and "Traceback" not in result.output


def test_chosen_checkpoints_and_their_learning_curve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (5, 10, 20):
        tiny_model(run / "checkpoints" / f"step-{step:06d}" / "policy")
    assert [model.step for model in find_models(str(run), checkpoints="20, 5")] == [5, 20]
    with pytest.raises(EvalError, match="has no checkpoint of step 7; it has 5, 10, 20"):
        find_models(str(run), checkpoints="5,7")
    arguments = ["--model", str(run), "--checkpoints", "5,20", "--tasks", "addition", "--limit", "3"]
    out = tmp_path / "out"
    evaluate_all(
        [str(run)], ["addition"], out=out, options=HF, checkpoints="5,20", engine=_in_process, say=lambda text: None
    )
    found = read_results(out / "run-step-20")
    assert (found.series, found.step) == ("run", 20)
    assert "| run | step | addition |" in (out / "report.md").read_text()
    assert '"series":"run"' in (out / "report.html").read_text().replace(" ", "")
    result = CliRunner().invoke(app, [*arguments, "--checkpoints", "6", "--out", str(out)])
    assert result.exit_code == 2 and "has no checkpoint of step 6" in result.output


def test_the_schema_of_results_is_printed_and_holds(tmp_path: Path) -> None:
    import jsonschema

    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    model = str(tiny_model(tmp_path / "model"))
    evaluate(model, ["addition"], out=tmp_path / "out", options=HF, engine=_in_process)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    jsonschema.validate(content, json.loads(result.output))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "surprise": 1}, json.loads(result.output))


def test_commands_compare_and_report_what_was_evaluated(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    for name, seed in (("a", 0), ("b", 1)):
        evaluate(model, ["addition"], out=tmp_path / name, options=replace(HF, seed=seed), engine=_in_process)
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    assert "addition: no real difference is shown between A (a) and B (b): A - B = " in result.output
    assert "sampling.seed differs" in result.output
    result = CliRunner().invoke(app, ["report", str(tmp_path / "b"), str(tmp_path / "a")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "b" / "report.md").read_text().count("## ") == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tasks", "gsm8k"], "no model"),
        (["--model", "x/y", "--tasks", "addition", "--mode", "caht"], "'caht' is not one of"),
        (["compare", "nowhere", "nowhere2"], "share no task"),
        (["contamination", "--tasks", "addition", "--training", "none.jsonl"], "none.jsonl"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


def test_the_report_holds_untrusted_text_as_data_only(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [{"id": f"{i}{attack}", "problem": f"{i} {attack}", "answer": "4", "kind": attack} for i in range(3)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bench.yaml").write_text(
        "name: bench\ndata: bench.jsonl\nbreakdown: [kind]\nverifier: llmrl.rewards.exact_number:ExactNumber\n"
    )
    out = tmp_path / "out"
    options = replace(HF, max_tokens=200)
    evaluate(
        model,
        [str(tmp_path / "bench.yaml")],
        out=out,
        options=options,
        engine=lambda settings: FakeEngine(lambda number, seed: attack if (seed or 0) % 2 else "4"),
    )
    _, html = write_reports([out])
    text = html.read_text()
    assert text.count("<script") == 2  # the data block and the page's own
    assert "<img" not in text
    assert "alert(1)" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
