"""The READMEs keep their word: the Python of the first one runs, links lead somewhere, named recipes exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llmrl.settings.load
from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.settings.load import load_recipe
from llmrl.settings.recipe import Recipe

ROOT = Path(__file__).parent.parent
OURS = ("llmrl", "rewards", "eval", "recipes", "launch", "tests")  # not build/, which building a wheel leaves behind
READMES = [*sorted(path for folder in OURS for path in (ROOT / folder).rglob("README.md")), ROOT / "README.md"]


def python_of(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)


@pytest.fixture
def tiny_recipes(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Whatever recipe is loaded trains the tiny model with the reference engine, in `tmp_path`."""
    small = [
        f"model.path={tiny_model}", "model.dtype=float32", "rollout.engine=hf", "rollout.isolated=false",
        "rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=4", "eval.data.n=2", "data.limit=8",
        f"runs_dir={tmp_path}", "train.deterministic=false",
    ]  # fmt: skip

    def load(path: str, overrides: list[str]) -> Recipe:
        return load_recipe(ROOT / path, [*overrides, *small])

    threads = torch.get_num_threads()
    monkeypatch.setattr(llmrl.settings.load, "load_recipe", load)
    yield tmp_path
    torch.set_num_threads(threads)


def test_the_example_of_the_readme_trains(tiny_recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = python_of(ROOT / "README.md")
    assert 10 <= len([line for line in example.splitlines() if line.strip()]) <= 14
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["outcome"].summary["completed_steps"] == 2
    first = (tiny_recipes / "brief" / "metrics.jsonl").read_text().splitlines()[1]
    assert '"reward/mean": 0.' in first, "the example's reward, 1 / length, was the one used"
    assert "step 2/2" in capsys.readouterr().out


def test_the_rewards_of_the_recipes_readme_are_accepted() -> None:
    from llmrl.compose import is_trl_reward

    ours, trl = python_of(ROOT / "recipes" / "README.md")
    names: dict[str, Any] = {}
    exec(compile(ours, "recipes/README.md", "exec"), names)
    assert not is_trl_reward(names["brief"])
    exec(compile(trl, "recipes/README.md", "exec"), names)
    assert is_trl_reward(names["brief"])
    talk = [[{"role": "assistant", "content": text}] for text in ("4", "x" * 40)]
    assert names["brief"](completions=talk, answer=["4", "4"]) == [1.0, 0.0]


@pytest.mark.parametrize("file", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_a_readme_names_exist(file: Path) -> None:
    text = file.read_text()
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    missing = [link for link in linked if link and "://" not in link and not (file.parent / link).exists()]
    recipes = set(re.findall(r"\brecipes/[\w/-]+\.yaml", text))
    missing += [name for name in recipes if not (ROOT / name).is_file()]
    assert not missing


def test_recipes_that_help_texts_and_docstrings_name_exist() -> None:
    named = {
        (name, str(file.relative_to(ROOT)))
        for folder in ("llmrl", "eval", "rewards")
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\brecipes/[\w/-]+\.yaml", file.read_text())
    }
    assert len(named) > 5
    assert [pair for pair in sorted(named) if not (ROOT / pair[0]).is_file()] == []


def test_the_readme_lists_every_algorithm() -> None:
    table = (ROOT / "README.md").read_text().partition("## Algorithms")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", table))))
    assert listed == {*ALGORITHMS, *PRESETS}


def test_every_recipe_is_valid_and_says_what_it_does() -> None:
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        assert load_recipe(file).description, file
