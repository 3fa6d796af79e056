"""The comparison of critics: rows by hand, and the whole of it at its smallest size."""

import json
from dataclasses import replace

import pytest

from llmrl.eval.records import Record, Sample
from llmrl.settings.load import load_recipe
from tests.bench import compare_critique
from tests.bench.compare_critique import RECIPES, Run, Size, main
from tests.bench.compare_critique_report import line, plain, pooled
from tests.tiny import random_model, save_model


def sample(draft, refined, verdict):
    parts = {"draft_right": float(draft)}
    return Sample(
        text="x",
        tokens=9,
        logprob=None,
        status="done",
        value=float(refined),
        parts=parts,
        flags=(f"verdict_{verdict}",),
    )


def record(question, *samples):
    return Record(index=0, question=question, prompt="", prompt_tokens=1, gold="7", columns={}, samples=samples)


def test_a_row_pools_seeds_by_question_and_counts_every_sample():
    first = [record("a", sample(0, 1, "wrong")), record("b", sample(1, 1, "correct"))]
    second = [record("a", sample(0, 0, "correct")), record("b", sample(1, 0, "malformed"))]
    questions = pooled([first, second])
    assert questions == [
        [(False, True, "wrong"), (False, False, "correct")],
        [(True, True, "correct"), (True, False, None)],
    ]
    cells = [cell.strip() for cell in line("both", 2, questions, 9.0).split("|")[1:-1]]
    assert cells[:2] == ["both", "2"] and cells[2].startswith("50.0 [") and cells[3].startswith("0.0 [")
    assert cells[4:6] == ["25.0", "25.0"] and cells[6].startswith("50.0") and cells[7:] == ["50.0", "50.0", "25.0", "9"]
    assert plain("drafts", [[1.0], [0.0]], 4.4).split("|")[3].strip().startswith("50.0 [")


def test_runs_start_where_they_should_and_the_baseline_has_as_many_steps(tmp_path):
    size, common = Size(), {"seed": 1, "actor": tmp_path / "actor", "start": tmp_path / "start"}
    steps = {}
    for method in ("stage_one", "stage_two", "indirect"):
        run = Run(method=method, folder=tmp_path / f"{method}-1", size=size, **common)
        recipe = load_recipe(RECIPES / f"{method}.yaml", run.changes)
        assert recipe.before == [] and recipe.model.path.endswith("start")
        assert recipe.engines["actor"].model.endswith("actor") and recipe.seed == 1
        steps[method] = recipe.train.steps
    assert steps["stage_one"] + steps["stage_two"] == steps["indirect"]


@pytest.mark.slow
def test_everything_runs_at_its_smallest_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_critique, "TINY", replace(compare_critique.TINY, problems=3))
    model = save_model(tmp_path / "tiny", random_model("llama", max_position_embeddings=1024))
    changes = ["model.dtype=float32", "model.max_length=640", "data.max_prompt_tokens=400", "limits.max_mismatch=5"]
    arguments = ["--runs", str(tmp_path), "--tiny", "--seeds", "1", "--no-write", "--model", str(model), *changes]
    main(arguments)
    shown = capsys.readouterr().out
    assert (
        "| stage I + II | 1 |" in shown and "| oracle critique | – |" in shown and (tmp_path / "compare.png").is_file()
    )
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a finished run was started"))
    main(arguments)
    assert json.loads((tmp_path / "stage_two-0" / "summary.json").read_text())["status"] == "finished"
