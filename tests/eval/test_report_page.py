"""The report page in a real browser: charts drawn, the keyboard works, nothing is loaded, nothing is executed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmrl.eval.evaluate import evaluate
from llmrl.eval.models import find_models
from llmrl.eval.plan import Options
from llmrl.eval.records import Record, Sample
from llmrl.eval.report import kind_of, length_bins, spread, write_reports
from llmrl.eval.scorers import ScorerSpec
from tests.eval.fakes import FakeEngine
from tests.eval.test_evaluate import tiny_model
from tests.report import chromium as browser

ATTACK = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {"id": f"q{i}", "problem": f"{i} + {i}? {ATTACK}", "answer": str(2 * i), "level": str(i % 3)} for i in range(12)
    ]
    (folder / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.yaml").write_text(
        "name: bench\ndata: bench.jsonl\nbreakdown: [level]\nverifier: llmrl.rewards.exact_number:ExactNumber\n"
        "vote: llmrl.eval.voting:number\ntemplate: '{problem}'\nmax_tokens: 40\n"
    )
    said: dict[int, int] = {}

    def say(first: int, seed: int | None) -> str:
        said[0] = said.get(0, -1) + 1
        return [str(2 * (said[0] // 4)), ATTACK, "long " * 20, "-1"][said[0] % 4]

    class InOrder(FakeEngine):
        stream = None  # type: ignore[assignment]

    model = str(tiny_model(folder / "model"))
    options = replace(Options(), samples=4, max_tokens=40)
    evaluate(model, [str(folder / "bench.yaml")], out=folder / "out", options=options, engine=lambda s: InOrder(say))
    return write_reports([folder / "out"])[1]


def test_lengths_are_binned_by_equal_counts_and_kinds_are_told_apart() -> None:
    samples = tuple(
        Sample(text="", tokens=i, logprob=0.0, status="done", value=float(i >= 8)) for i in reversed(range(16))
    )
    record = Record(index=0, question="q", prompt="", prompt_tokens=0, gold="", columns={}, samples=samples)
    bins = length_bins([record])
    assert [one["samples"] for one in bins] == [2] * 8
    assert [one["right"] for one in bins] == [0.0] * 4 + [1.0] * 4
    assert [one["tokens"] for one in bins] == [0.5 + 2 * i for i in range(8)]
    assert length_bins([]) == []
    assert [
        kind_of(replace(samples[0], value=v, status=s)) for v, s in [(1, "truncated"), (0, "truncated"), (0, "done")]
    ] == [
        "right",
        "truncated",
        "wrong",
    ]
    assert kind_of(replace(samples[0], value=None)) == "error"
    assert spread([record] * 3, 5) == [record] * 3
    assert len(spread([record] * 30, 7)) == 7


@pytest.mark.skipif(browser.BINARY is None, reason="no Chromium on this machine")
def test_the_page_draws_filters_and_walks_by_keyboard(page_file: Path, tmp_path: Path) -> None:
    with browser.chromium(tmp_path / "profile") as page:
        page.open(page_file.as_uri())
        page.show(width=1200)
        assert page.run("document.querySelectorAll('#curve-charts svg path').length") >= 4
        assert page.run("document.querySelectorAll('.category .fill').length") == 3
        assert page.run("document.querySelectorAll('.list li').length") == 12
        page.run("document.getElementById('questions').scrollIntoView()")
        selected = "document.querySelector('.list [aria-selected=true] .text').textContent"
        first = page.run(selected)
        page.press("j")
        assert page.run(selected) != first
        page.press("k")
        assert page.run(selected) == first
        page.press("4")
        assert page.run("document.querySelector('.detail .tag').textContent") == "truncated"
        page.press("/")
        for key in "q7":
            page.press(key)
        assert page.run("document.querySelectorAll('.list li').length") == 1
        assert page.run(selected) == "q7"
        assert "onerror" in page.run("document.querySelector('.detail').textContent")
        assert page.run("document.querySelectorAll('img').length") == 0
        assert page.run("document.title") == f"{page_file.parents[1] / 'model'} · llmrl eval"
        page.show(width=390)
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.requests() == [page_file.as_uri()]
        assert page.problems() == []


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a run, each with eight samples a question and a scorer."""
    folder = tmp_path_factory.mktemp("run")
    folders = []
    for step in (0, 10, 20):
        tiny_model(folder / "run" / "checkpoints" / f"step-{step:06d}" / "policy")
        (model,) = find_models(str(folder / "run"), checkpoints=str(step)) if step else find_models(str(folder / "run"))
        engine = FakeEngine(lambda number, seed, step=step: str((seed or 0) % (60 - 2 * step)))
        options = Options(samples=8, limit=10, max_tokens=20, scorers=(ScorerSpec(path="likelihood"),))
        folders.append(folder / f"step-{step}")
        evaluate(model, ["addition"], out=folders[-1], options=options, engine=lambda s, engine=engine: engine)
    return write_reports(folders, out=folder)[1]


@pytest.mark.skipif(browser.BINARY is None, reason="no Chromium on this machine")
def test_checkpoints_are_one_curve_and_strategies_one_chart(run_page: Path, tmp_path: Path) -> None:
    with browser.chromium(tmp_path / "profile") as page:
        page.open(run_page.as_uri())
        page.show(width=1200)
        assert page.run("document.querySelector('h1').textContent") == "Evaluation of run, steps 0 to 20"
        curve = "document.querySelector('#learning-charts')"
        assert page.run(f"{curve}.querySelectorAll('figure').length") == 1
        assert page.run(f"{curve}.querySelector('h3').textContent") == "addition · run"
        assert page.run(f"{curve}.querySelectorAll('.legend span').length") == 3
        assert page.run(f"{curve}.querySelectorAll('circle').length") == 9
        titles = page.run("[...document.querySelectorAll('#curve-charts h3')].map((x) => x.textContent)")
        assert all("step-20" in title for title in titles)
        assert [title for title in titles if "choosing among samples" in title]
        legends = page.run("[...document.querySelectorAll('#curve-charts .legend span')].map((x) => x.textContent)")
        assert {"best of n · Likelihood", "weighted vote · Likelihood", "majority", "an oracle (pass@k)"} <= set(
            legends
        )
        assert page.run("document.querySelector('.chip[aria-pressed=true]').textContent").endswith("step-20")
        for width in (320, 390, 760):
            page.show(width=width)
            assert page.run("document.documentElement.scrollWidth") <= width
        assert page.problems() == []


@pytest.mark.skipif(browser.BINARY is None, reason="no Chromium on this machine")
def test_a_long_prompt_shows_its_end_and_does_not_push_the_answer_away(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"problem": "example\n" * 200 + "THE QUESTION", "answer": "2"}) + "\n"
    )
    model = str(tiny_model(tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    evaluate(
        model, [str(tmp_path / "long.jsonl")], out=tmp_path / "out", engine=lambda s: FakeEngine(lambda n, seed: "2")
    )
    with browser.chromium(tmp_path / "profile") as page:
        page.open(write_reports([tmp_path / "out"])[1].as_uri())
        page.show(width=1200)
        prompt = "document.querySelector('.detail .prompt')"
        assert page.run(f"{prompt}.clientHeight") < 300 < page.run(f"{prompt}.scrollHeight")
        assert page.run(f"{prompt}.scrollTop + {prompt}.clientHeight >= {prompt}.scrollHeight - 2")
        assert page.run("document.querySelector('#learning')") is None
