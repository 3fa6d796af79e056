"""The READMEs keep their word: the Python of the first one runs, links lead somewhere, named recipes exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.settings.load import load_recipe

ROOT = Path(__file__).parent.parent
OURS = ("llmrl", "rewards", "eval", "recipes", "launch", "tests")  # not build/, which building a wheel leaves behind
READMES = [*sorted(path for folder in OURS for path in (ROOT / folder).rglob("README.md")), ROOT / "README.md"]


def python_of(file: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(), re.DOTALL)


def test_the_example_of_the_readme_trains(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it stands, but for the size of the model and of the run."""
    import llmrl

    (example,) = python_of(ROOT / "README.md")
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 15 and len([line for line in lines if "import" in line.split()]) == 1
    small = {
        "model.dtype": "float32", "rollout.prompts_per_step": 2, "rollout.group_size": 2, "rollout.max_tokens": 4,
        "eval.data": {"n": 2}, "data.limit": 8, "data.max_prompt_tokens": 100, "runs_dir": str(tmp_path),
        "model.max_length": 128, "limits.max_mismatch": 5.0,
    }  # fmt: skip
    whole = llmrl.train
    monkeypatch.setattr(
        llmrl,
        "train",
        lambda model, *given, **more: whole(str(tiny_model), *given, settings=small, **more),
        raising=False,
    )
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    exec(compile(example, "README.md", "exec"), names)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    assert names["trained"].summary["completed_steps"] == 2 and "step 2/2" in capsys.readouterr().out
    assert names["model"].config.model_type == "llama" and names["tokenizer"]("2")["input_ids"]


def test_the_public_names_are_there_and_loading_them_is_light() -> None:
    import llmrl

    assert all(getattr(llmrl, name) is not None for name in llmrl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = llmrl.tarin


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
    assert named
    assert [pair for pair in sorted(named) if not (ROOT / pair[0]).is_file()] == []


def test_the_readme_lists_every_algorithm() -> None:
    table = (ROOT / "README.md").read_text().partition("## Algorithms")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", table))))
    assert listed == {*ALGORITHMS, *PRESETS}


def test_every_recipe_is_valid_and_says_what_it_does() -> None:
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        assert load_recipe(file).description, file
