"""The pages of recipes/tutorial keep their word: their files are written, their commands run, on a tiny model."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmrl.cli import app

FOLDER = Path(__file__).parents[1] / "recipes" / "tutorial"
BLOCK = re.compile(r"```(sh|file \S+)\n(.*?)```", re.DOTALL)
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")
FAST = {"own_data.md", "private.md"}
SMALL = [
    "model.dtype=float32", "model.max_length=128", "rollout.prompts_per_step=2", "rollout.group_size=2",
    "rollout.max_tokens=4", "train.steps=2", "train.threads=1", "eval={data: {n: 3}}", "limits.max_mismatch=5",
    "data.max_prompt_tokens=100",
]  # fmt: skip


def blocks(page):
    """(the files that a page writes, its commands that are to be run)."""
    found = BLOCK.findall(page.read_text())
    files = {kind.removeprefix("file "): text for kind, text in found if kind.startswith("file ")}
    shells = [text for kind, text in found if kind == "sh" and not text.startswith("# not run\n")]
    return files, [line for text in shells for line in text.splitlines()]


def small(words, model):
    """A command that trains, cut down to seconds."""
    if words[0] == "train" or words[:2] == ["plan", "mine.yaml"]:
        return [*words, f"model.path={model}", *SMALL]
    if words[0] == "sweep":
        return [*words, "train.steps=1", f"model.path={model}", *(one for one in SMALL if "steps" not in one)]
    return words


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.name, marks=() if p.name in FAST else pytest.mark.slow) for p in PAGES]
)
def test_the_commands_of_a_page_run(page, tiny_model, tmp_path, monkeypatch, settings_as_before):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(FOLDER.parents[1])]))
    files, commands = blocks(page)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        sys.modules.pop(name.removesuffix(".py"), None)  # another test's module of that name
    if "sums.jsonl" in files:  # "some hundred of them"
        rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(9) for b in range(9)]
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in commands:
        llmrl, *words = shlex.split(line)
        assert llmrl == "llmrl", line
        done = CliRunner().invoke(app, small(words, tiny_model), catch_exceptions=True)
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"


def test_every_page_is_listed_and_every_listed_page_is_there():
    listed = re.findall(r"\]\((\w+\.md)\)", (FOLDER / "README.md").read_text())
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_name_options_that_exist(page):
    skipped = [
        text for kind, text in BLOCK.findall(page.read_text()) if kind == "sh" and text.startswith("# not run\n")
    ]
    for line in (line for text in skipped for line in text.splitlines()[1:]):
        words = shlex.split(line)[1:]
        count = 2 if words[0] in ("privacy", "rewards", "models") else 1
        shown = CliRunner().invoke(app, [*words[:count], "--help"], env={"COLUMNS": "300"}).output
        assert all(word.partition("=")[0] in shown for word in words if word.startswith("--")), line
