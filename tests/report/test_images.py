"""Images of stored rollouts: by size and hash in a terminal, as small PNGs that were written anew on the page."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from llmrl.report import embedded
from llmrl.report.embedded import embedded_samples
from llmrl.report.page import write_report
from llmrl.report.samples import show_samples
from llmrl.rollout.store import rollouts_file, write_rollouts
from llmrl.types import Prompt
from tests.report.chromium import BINARY, chromium
from tests.report.synthetic import write_run
from tests.tiny import picture, trajectory

SMALL, LARGE = picture(0, (12, 20)), picture(1, (400, 100))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose step 1 shows one image in two rows, another in one of them, and a file that is gone."""
    made = write_run(tmp_path / "run", steps=1)
    row = trajectory((5, 6), [[7]], group="g")
    gone = picture(2)
    shown = [(SMALL,), (SMALL, LARGE), (gone,), ()]
    rows = [
        replace(row, sample=n, prompt=Prompt(id=f"g{n}", tokens=(5, 6), text=f"q{n}", media=media))
        for n, media in enumerate(shown)
    ]
    write_rollouts(rollouts_file(made, 1), rows, [0.0] * len(rows))
    (made / "rollouts" / "media" / f"{gone.hash}.png").unlink()
    return made


def test_samples_say_size_and_hash(run: Path) -> None:
    console = Console(record=True, width=120)
    show_samples(run, step=1, n=4, console=console)
    text = console.export_text()
    assert text.count(f"image 20×12 {SMALL.hash[:12]}") == 2 and text.count(f"image 100×400 {LARGE.hash[:12]}") == 1
    assert text.count("image missing") == 1


def test_a_page_carries_each_image_once_small_and_only_what_pillow_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embedded_samples(run, [])
    assert [prompt[3] for prompt in found["prompts"]] == [(0,), (0, 1), (2,), ()] or [
        list(prompt[3]) for prompt in found["prompts"]
    ] == [[0], [0, 1], [2], []]
    small, large, gone = found["images"]
    assert gone == ""
    opened = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in (small, large)]
    assert [one.size for one in opened] == [(20, 12), (40, 160)]
    assert opened[0].tobytes() == SMALL.open().tobytes()
    (run / "rollouts" / "media" / f"{LARGE.hash}.png").write_bytes(b"<script>alert(1)</script>")
    monkeypatch.setattr(embedded, "MAX_IMAGES", 2)
    assert embedded_samples(run, [])["images"] == [small, "", ""]


@pytest.mark.skipif(BINARY is None, reason="needs Chromium (Debian package chromium)")
def test_the_page_shows_them_under_the_prompt(run: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.open(write_report(run).as_uri())
        browser.show(width=1200)
        assert browser.problems() == []
        sizes = browser.run("[...document.querySelectorAll('.images img')].map((x) => x.naturalWidth)")
        assert sizes == [20]
