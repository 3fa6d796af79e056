"""Every algorithm has a page that names each hyper-parameter, its default, and each metric that is ever logged."""

import dataclasses
import re
from pathlib import Path

import pytest

from llmrl.algos import ALGORITHMS, PRESETS
from llmrl.algos.build import build_algorithm
from llmrl.conformance.cases import random_batch, random_output

FOLDER = Path(__file__).parents[2] / "llmrl/algos"
OPTIONS = {
    "kl_coef": 0.1,
    "entropy_coef": 0.1,
    "importance_cap": 2.0,
}
# Settings under which an algorithm logs something that it does not log by default.
MORE = {
    "coderl": [{"clip": 0.2}],
    "ppo": [{"kl_in": "loss", "kl_estimator": "k3"}],
    "reinforce_pp": [{"baseline": "group"}],
}


def table(page, first):
    """The rows of the table whose first heading is `first`: name -> the other cells."""
    _, _, behind = page.partition(f"| {first} |")
    rows = {}
    for line in behind.splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        rows[name.strip("`")] = cells
    return rows


def logged(name):
    """Every metric that the algorithm gives under its options."""
    fields = {item.name for item in dataclasses.fields(build_algorithm({"name": name}))}
    found = set()
    for more in ({}, *MORE.get(name, [])):
        section = {"name": name} | {key: value for key, value in OPTIONS.items() if key in fields} | more
        algo = build_algorithm(section)
        batch = algo.credit(random_batch(3))
        metrics = {key: float(value) for key, value in algo.loss(random_output(batch, 4), batch).metrics.items()}
        derive = getattr(algo, "derived_metrics", None) or getattr(algo, "report", None)
        found |= metrics.keys() | (derive(metrics).keys() if derive else set())
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_names_every_hyper_parameter_with_its_default_and_no_other(name):
    algo = build_algorithm({"name": name})
    shown = {key: cells[0] for key, cells in table((FOLDER / f"docs/{name}.md").read_text(), "hyper-parameter").items()}
    for item in dataclasses.fields(algo):
        default = getattr(algo, item.name)
        said = shown.pop(item.name)
        if isinstance(default, float) and not isinstance(default, bool):
            assert float(said) == default, item.name
        else:
            assert said == {None: "null", True: "true", False: "false"}.get(default, default), item.name
    assert shown == {}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_explains_every_metric_that_the_algorithm_logs_and_no_other(name):
    explained = table((FOLDER / f"docs/{name}.md").read_text(), "metric")
    assert explained.keys() == logged(name)


def test_the_overview_leads_to_every_page_and_names_every_algorithm():
    overview = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"\(docs/(\w+)\.md\)", overview)) == set(ALGORITHMS)
    assert {page.stem for page in (FOLDER / "docs").glob("*.md")} == set(ALGORITHMS)
    for name in (*ALGORITHMS, *PRESETS):
        assert f"`{name}`" in overview
    for preset, (base, _) in PRESETS.items():
        assert f"`{preset}`" in (FOLDER / f"docs/{base}.md").read_text()


def test_the_overview_explains_the_metrics_that_the_trainer_logs():
    overview = (FOLDER / "README.md").read_text()
    explained = {word for name in table(overview, "metric") for word in re.findall(r"[a-z_0-9/]+", name)}
    code = "".join(file.read_text() for file in (FOLDER.parent / "train").glob("*.py"))
    families = "reward|length|rollout|group|tokens|rows|update|value|mismatch|engine|eval|time"
    written = set(re.findall(rf'"((?:{families})/[a-z_0-9]+)"', code))
    assert len(written) > 25 and written <= explained
