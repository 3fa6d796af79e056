"""The report page in a real headless Chromium: it draws, reacts, loads nothing, and model text stays text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmrl.report.page import write_report
from tests.report.chromium import BINARY, Page, chromium
from tests.report.synthetic import write_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs Chromium (Debian package chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "quick", steps=25, prompts=6, group_size=8))


def load(browser: Page, file: Path, *, width: int = 1200) -> None:
    browser.events.clear()
    browser.open(file.as_uri())
    browser.show(width=width)


def count(browser: Page, selector: str) -> int:
    return int(browser.run(f"document.querySelectorAll({selector!r}).length"))


def text(browser: Page, selector: str) -> str:
    return str(browser.run(f"document.querySelector({selector!r}).textContent"))


def test_the_page_draws_every_chart_without_an_error_and_asks_for_nothing_else(browser: Page, report: Path) -> None:
    load(browser, report)
    assert browser.problems() == []
    assert browser.requests() == [report.as_uri()]
    titles = browser.run("[...document.querySelectorAll('.chart h3')].map((x) => x.textContent)")
    expected = {"Held-out accuracy", "Reward in training", "Loss", "Gradient norm", "Sampler–trainer mismatch"}
    assert expected | {"Seconds per step", "Rewards", "Completion lengths", "Length histogram"} <= set(titles)
    drawn = browser.run("[...document.querySelectorAll('.chart svg')].map((x) => x.querySelectorAll('path').length)")
    assert len(drawn) == len(titles)
    assert all(paths >= 1 for paths in drawn)
    # A coordinate that is not a number would be an invisible curve, not an error.
    assert browser.run("document.querySelector('main').innerHTML.includes('NaN')") is False
    assert browser.run("document.querySelector('main').innerHTML.includes('undefined')") is False


def test_the_detectors_of_this_test_file_do_detect(browser: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='file:///nowhere.png' onerror='window.hacked = 1'><script>throw Error('x')</script>")
    load(browser, bad)
    assert browser.run("window.hacked") == 1
    assert len(browser.requests()) == 2
    assert any("Error: x" in problem for problem in browser.problems())


def test_the_policy_stops_markup_that_an_escape_forgot(browser: Page, report: Path, tmp_path: Path) -> None:
    holed = tmp_path / "holed.html"
    injected = "<img src='http://127.0.0.1:9/x.png' onerror='window.hacked = 1'><script>window.hacked = 1</script>"
    holed.write_text(report.read_text(encoding="utf-8").replace("<main>", f"<main>{injected}"), encoding="utf-8")
    load(browser, holed)
    assert browser.run("window.hacked") is None
    assert any("Content Security Policy" in problem for problem in browser.problems())


def test_model_text_is_shown_and_does_nothing(browser: Page, tmp_path: Path) -> None:
    file = write_report(write_run(tmp_path / "<b>r", steps=3, prompts=2, group_size=4, hostile=HOSTILE))
    load(browser, file)
    for i, hostile in enumerate(HOSTILE):
        browser.run(f"document.querySelectorAll('.list li')[{i}].click()")
        assert text(browser, ".detail pre.completion") == hostile
        assert count(browser, ".detail img, .detail svg, .detail script") == 0
    browser.run("search.value = 'onerror'; search.dispatchEvent(new Event('input'))")
    assert count(browser, ".list li") == 1
    assert text(browser, ".detail mark") == "onerror"
    assert browser.run("window.hacked") is None
    assert count(browser, "script") == 2
    assert browser.problems() == []
    assert browser.requests() == [file.as_uri()]


def test_the_keyboard_walks_samples_steps_and_search(browser: Page, report: Path) -> None:
    load(browser, report)
    browser.run("document.getElementById('samples').scrollIntoView()")
    place, step = "[found.at, document.querySelectorAll('[aria-selected=true]').length]", "found.step"
    assert browser.run(place) == [0, 1]
    browser.press("j")
    browser.press("j")
    browser.press("k")
    assert browser.run(place) == [1, 1]
    browser.press("ArrowDown")
    assert browser.run(place) == [1, 1]  # without focus inside, arrows belong to the page
    browser.run("list.focus()")
    browser.press("ArrowDown")
    assert browser.run(place) == [2, 1]
    assert browser.run(step) == 25
    browser.press("ArrowLeft")
    assert browser.run(step) < 25
    browser.press("End")
    assert browser.run("found.at === found.rows.length - 1") is True
    browser.press("/")
    assert browser.run("document.activeElement === search && search.value") == ""
    browser.press("j")
    assert browser.run("search.value") == "j"  # in the search box, letters are letters
    browser.press("Escape")
    assert browser.run("[search.value, document.activeElement === list]") == ["", True]


def test_filters_show_only_their_kind_and_counts_agree(browser: Page, report: Path) -> None:
    load(browser, report)
    browser.run("pickStep(null)")
    total = int(browser.run("allRows.length"))
    counts = []
    for kind in ("right", "wrong", "truncated", "failed"):
        press = f"[...kindChips.querySelectorAll('button')].find((b) => b.textContent.startsWith('{kind}'))"
        browser.run(f"{press}.click()")
        shown = int(browser.run("found.rows.length"))
        assert text(browser, ".detail .tag") == kind
        assert browser.run(f"{press}.textContent") == f"{kind}{shown}"
        assert count(browser, ".list li") == shown
        counts.append(shown)
    assert sum(counts) == total
    assert all(counts)


def test_the_group_of_a_sample_leads_to_its_siblings(browser: Page, report: Path) -> None:
    load(browser, report)
    assert count(browser, ".group button") == 8
    browser.run("document.querySelectorAll('.group button')[5].click()")
    assert browser.run("found.rows[found.at].sample") == 5
    assert browser.run("document.querySelectorAll('.group button')[5].getAttribute('aria-current')") == "true"


def test_pointing_at_a_chart_names_the_step_and_its_values(browser: Page, report: Path) -> None:
    load(browser, report)
    point = """(() => { const svg = document.querySelector('.chart svg'), box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.right - 15, clientY: box.top + 50 }));
      return document.querySelector('.chart .tip').textContent; })()"""
    shown = str(browser.run(point))
    last = browser.run("[evals.step.at(-1), percent(evals.columns['eval/accuracy'].at(-1))]")
    assert shown.startswith(f"step {last[0]}accuracy {last[1]} [")
    assert int(browser.run("document.querySelectorAll('.cursor[visibility=visible]').length")) > 5


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_short_and_running_runs_draw_without_an_error(browser: Page, tmp_path: Path, steps: int) -> None:
    load(browser, write_report(write_run(tmp_path / "r", steps=steps, prompts=2, group_size=2, finished=False)))
    assert browser.problems() == []
    assert browser.run("document.querySelector('main').innerHTML.includes('NaN')") is False
    assert count(browser, ".chart") >= 1


def test_a_folder_with_only_a_recipe_says_that_nothing_was_recorded(browser: Page, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    load(browser, write_report(tmp_path))
    assert browser.problems() == []
    assert count(browser, ".chart") == 0
    assert "No stored rollouts" in text(browser, "#samples")


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_no_width_makes_the_page_scroll_sideways(browser: Page, report: Path, width: int) -> None:
    load(browser, report, width=width)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth") is True


def test_dark_mode_is_dark_and_readable(browser: Page, report: Path) -> None:
    load(browser, report)
    look = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    light = browser.run(look)
    browser.show(width=1200, dark=True)
    dark = browser.run(look)
    brightness = [sum(int(x) for x in colour[4:-1].split(",")) / 765 for colour in (*light, *dark)]
    assert brightness[0] > 0.9 > 0.2 > brightness[1]
    assert brightness[2] < 0.15 < 0.85 < brightness[3]


def test_signs_of_reward_hacking_have_a_chart_and_a_row_each(browser: Page, report: Path) -> None:
    load(browser, report)
    titles = browser.run("[...document.querySelectorAll('.chart h3')].map((x) => x.textContent)")
    assert "Signs of reward hacking" in titles
    health = text(browser, "#health-table")
    for words in (
        "several different boxes",
        "stuffed with answers",
        "empty reasoning",
        "tampers with tests",
        "truncated",
    ):
        assert words in health, words
