"""The report page in a real browser: charts drawn, the keyboard works, nothing is loaded, nothing is executed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmrl.eval.evaluate import evaluate
from llmrl.eval.plan import Options
from llmrl.eval.records import Record, Sample
from llmrl.eval.report import kind_of, length_bins, spread, write_reports
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
