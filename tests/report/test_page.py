"""The report page as text: escaping, policy, runs of every length. test_page_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrl.report.html import json_block
from llmrl.report.page import write_report
from tests.report.synthetic import write_run

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- <script>",
    "]]></style><svg onload=alert(1)>",
    "&lt;b&gt; \u2028 \u2029 \x00 \ufffe",
)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open, []).append(data)


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    return elements


def data_of(html: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return dict(json.loads(found.group(1)))


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_the_data_block_carries_any_text_and_cannot_end_its_script(value: object) -> None:
    block = json_block(value)
    assert json.loads(block) == value
    assert not set(block) & set("<>&\u2028\u2029")


def test_hostile_text_leaves_the_elements_of_the_page_as_they_are(tmp_path: Path) -> None:
    pages = []
    for name, texts in (("plain", ()), ("hostile", HOSTILE)):
        run = write_run(tmp_path / name, steps=2, prompts=2, group_size=4, hostile=texts)
        if texts:
            (run / "recipe.yaml").write_text(f'model: "{HOSTILE[0]}"\nnote: "{HOSTILE[1]}"\n')
            (run / "environment.json").write_text(json.dumps({"x": HOSTILE}))
            summary = json.loads((run / "summary.json").read_text()) | {"status": HOSTILE[1], "seed": HOSTILE[0]}
            (run / "summary.json").write_text(json.dumps(summary))
        pages.append(write_report(run).read_text(encoding="utf-8"))
    plain, hostile = (parsed(page) for page in pages)
    assert [tag for tag, _ in plain.found] == [tag for tag, _ in hostile.found]
    assert not any(key.startswith("on") for _, attrs in hostile.found for key in attrs)
    rows = data_of(pages[1])["samples"]["rows"]  # type: ignore[index]
    assert HOSTILE[0] in [row.get("text") for row in rows]


def test_the_policy_allows_only_the_pages_own_script_and_style(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "r", steps=2, prompts=2, group_size=2)).read_text(encoding="utf-8")
    policy = next(a["content"] for tag, a in parsed(html).found if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert (len(style), len(scripts)) == (1, 1)
    for content in (style[0], scripts[0]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_the_page_points_to_nothing_outside_itself(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "r", steps=2, prompts=2, group_size=2)).read_text(encoding="utf-8")
    links = [value for _, attrs in parsed(html).found for key, value in attrs.items() if key in ("src", "href")]
    assert all(link is not None and link.startswith(("#", "data:,")) for link in links)
    assert set(re.findall(r"https?://[^'\"\s]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_run_of_any_length_still_going_on_gives_a_page(tmp_path: Path, steps: int) -> None:
    run = write_run(tmp_path / "r", steps=steps, prompts=2, group_size=2, finished=False)
    file = write_report(run)
    assert file == run / "report.html"
    html = file.read_text(encoding="utf-8")
    train = data_of(html)["train"]
    assert train["step"] == list(range(1, steps + 1))  # type: ignore[index]
    assert "running or stopped" in html
    assert list(run.glob(".*.partial")) == []


def test_a_folder_with_only_a_recipe_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3\n")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "metrics.jsonl is not there" in html
    assert "not evaluated yet" in html
    assert "no steps yet" in html


def test_headline_numbers_and_what_was_cut_stand_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=40, prompts=8, group_size=8)
    (run / "rollouts" / "step-000040.parquet").write_bytes(b"broken")
    html = write_report(run).read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['accuracy_before']:.1%}" in html
    assert f"{summary['accuracy_after']:.1%}" in html
    assert "smollm2-135m" in html
    assert re.search(r"On this page: \d+ of the 960 samples of 15 of 40 stored steps", html)
    assert html.count("step-000040.parquet is not a readable parquet file") == 1


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=2, prompts=2, group_size=2)
    first = write_report(run).read_text(encoding="utf-8")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","step":3,"loss":0.25}\n')
    second = write_report(run).read_text(encoding="utf-8")
    assert first != second
    assert data_of(second)["train"]["step"] == [1, 2, 3]  # type: ignore[index]
