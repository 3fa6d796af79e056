"""Two processes learn what one does, whichever back-end shares the policy, and each reads the others' checkpoints."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmrl.train.checkpoint import checkpoints, damage, folder_of, read_state, read_tensors
from llmrl.train.world import World
from tests.durability.harness import write_recipe
from tests.torchrun import ROOT, search_path, torchrun
from tests.train.sharing import METHODS, Case, run_case, write_cases

TOLERANCE = 1e-4  # float32: of the largest weight, after ten updates
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="no deepspeed: pip install 'llmrl[deepspeed]'")
BACKENDS = ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]

Make = Callable[..., Case]


@pytest.fixture(scope="module")
def make(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Cases of the tiny model, each with a run folder of its own."""
    folder = tmp_path_factory.mktemp("backends")

    def case(run: str, backend: str, **settings: object) -> Case:
        return Case(run=str(folder / run), source=str(tiny_model), backend=backend, **settings)  # type: ignore[arg-type]

    return case


@pytest.fixture(scope="module")
def alone(make: Make) -> Callable[..., Path]:
    """The checkpoint of one process, made once for each set of settings."""
    made: dict[str, Path] = {}

    def checkpoint(**settings: object) -> Path:
        name = "alone-" + "-".join(f"{key}={value}" for key, value in sorted(settings.items()))
        if name not in made:
            case = make(name, "ddp", **settings)
            run_case(case, World())
            made[name] = saved(case)
        return made[name]

    return checkpoint


def saved(case: Case) -> Path:
    return folder_of(Path(case.run), case.end)


def together(cases: list[Case]) -> None:
    """Run cases one after another in two processes."""
    file = Path(cases[0].run).with_suffix(".json")
    write_cases(file, cases)
    compiled = file.with_suffix(".compiled")
    torchrun(
        "tests.train.sharing", file, timeout=1800, DS_ACCELERATOR="cpu", TORCH_EXTENSIONS_DIR=str(compiled)
    )  # fmt: skip
    assert not compiled.exists(), "a compiler is not among what users need"


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's optimizer, value model and reference."""
    files = [
        name
        for name in ("optimizer", "critic", "outcome_critic", "reference")
        if (checkpoint / f"{name}.safetensors").is_file()
    ]
    return {f"{name}:{key}": tensor for name in files for key, tensor in read_tensors(checkpoint, name).items()}


def difference(one: Path, other: Path) -> float:
    """Largest difference between the weights of two checkpoints (value model and reference too), over the largest."""
    mine, yours = stored(one), stored(other)
    assert set(mine) == set(yours)
    names = [name for name in mine if ":master/" in name or name.startswith("reference:")]
    gap = max(float((mine[name].float() - yours[name].float()).abs().max()) for name in names)
    return gap / max(float(mine[name].abs().max()) for name in names)


def assert_same(one: Path, other: Path) -> None:
    """Equal master weights, metrics, and Hugging Face folders, within the tolerance; the same names and precisions."""
    assert damage(one) is None and damage(other) is None
    assert difference(one, other) < TOLERANCE
    files = [{str(f.relative_to(x)) for f in x.rglob("*") if f.is_file()} for x in (one / "policy", other / "policy")]
    assert files[0] == files[1] and "model.safetensors" in files[0]
    for name in (name for name in files[0] if name.endswith(".safetensors")):
        mine, yours = load_file(one / "policy" / name), load_file(other / "policy" / name)
        assert mine.keys() == yours.keys()
        for key, tensor in mine.items():
            assert tensor.dtype == yours[key].dtype
            torch.testing.assert_close(tensor, yours[key], rtol=0, atol=TOLERANCE)
    for mine, yours in zip(
        *(json.loads((x.parent.parent / "metrics.json").read_text()) for x in (one, other)), strict=True
    ):
        counted = {
            name for name in yours if name.startswith("label_accuracy")
        }  # a score of 0 +- rounding is on either side
        mine, yours = ({name: x for name, x in side.items() if name not in counted} for side in (mine, yours))
        assert mine == pytest.approx(yours, rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.fixture(scope="module")
def quick(make: Make) -> list[Case]:
    """What the fast suite runs: sharded by PyTorch, full and as an adapter, with poison in the first."""
    cases = [
        make("quick-full", "fsdp2", method="grpo", poison=True),
        make("quick-lora", "fsdp2", method="pacs", lora=True),
    ]
    together(cases)
    return cases


def test_two_processes_with_sharded_weights_learn_what_one_does_and_drop_the_same_gradients(
    quick: list[Case], alone: Callable[..., Path]
) -> None:
    assert_same(alone(method="grpo", poison=True), saved(quick[0]))
    metrics = json.loads((Path(quick[0].run) / "metrics.json").read_text())
    assert [row["update/skipped"] for row in metrics] == [0, 1, 0, 1, 0]


def test_two_processes_with_a_sharded_adapter_learn_what_one_does(
    quick: list[Case], alone: Callable[..., Path]
) -> None:
    assert_same(alone(method="pacs", lora=True), saved(quick[1]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_learns_what_one_process_does(backend: str, make: Make, alone: Callable[..., Path]) -> None:
    cases = [
        make(f"{backend}-{method}-{lora}", backend, method=method, lora=lora)
        for method in METHODS
        for lora in (False, True)
    ]
    cases.append(make(f"{backend}-poison", backend, poison=True))
    together(cases)
    for case in cases:
        expected = alone(method=case.method, lora=case.lora, poison=case.poison)
        print(f"{backend} {case.method} {'lora' if case.lora else 'full'}: {difference(expected, saved(case)):.1e}")
        assert_same(expected, saved(case))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_continues_with_other_processes_and_back_ends(make: Make, alone: Callable[..., Path], lora: bool) -> None:
    """2 -> 1 -> 2 processes, and from each back-end to the next; the weights are those of a run that never stopped."""
    others = ["zero3", "zero2"] if DEEPSPEED else ["ddp"]
    begun = make(f"begun-{lora}", "fsdp2", lora=lora, end=1)
    together([begun])
    single = make(f"single-{lora}", "ddp", lora=lora, start=1, end=2, load=str(saved(begun)))
    run_case(single, World())
    chain = [single]
    for step, backend in enumerate([*others, "fsdp2"] if DEEPSPEED else ["fsdp2", *others, "fsdp2"], start=2):
        before = str(saved(chain[-1]))
        chain.append(make(f"chain-{step}-{lora}", backend, lora=lora, start=step, end=step + 1, load=before))
    together(chain[1:])
    assert chain[-1].end == 5
    print(f"resumed {'lora' if lora else 'full'}: {difference(alone(lora=lora), saved(chain[-1])):.1e}")
    assert difference(alone(lora=lora), saved(chain[-1])) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_weights_stay_close_to_those_of_one_process(
    backend: str, make: Make, alone: Callable[..., Path]
) -> None:
    """Rounding differs with the micro-batches, so that this is a check of precisions and files more than of numbers."""
    cases = [make(f"{backend}-low-{lora}", backend, dtype="bfloat16", lora=lora) for lora in (False, True)]
    together(cases)
    for case in cases:
        expected = alone(dtype="bfloat16", lora=case.lora)
        print(f"{backend} bfloat16 {'lora' if case.lora else 'full'}: {difference(expected, saved(case)):.1e}")
        assert difference(expected, saved(case)) < 0.05
        mine, wanted = (load_file(x / "policy" / "model.safetensors") for x in (saved(case), expected))
        assert {name: x.dtype for name, x in mine.items()} == {name: x.dtype for name, x in wanted.items()}
        assert set(stored(saved(case))) == set(stored(expected))
        masters = [x for name, x in stored(saved(case)).items() if ":master/" in name]
        assert all(x.dtype == torch.float32 for x in masters)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_accelerate_launch_with_a_back_ends_file_trains_the_recipe_as_it_is(
    tmp_path: Path, tiny_model: Path, backend: str
) -> None:
    changes = {"train.steps": 2, "train.save_every": 1, "eval.data": {"n": 2}, "eval.every": 0}
    recipe = write_recipe(tmp_path, tiny_model, changes)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launcher += ["--config_file", str(ROOT / "launch" / "accelerate" / f"{backend}.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path(), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*launcher, "-m", "llmrl", "train", str(recipe)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"2 processes share the policy: {backend}" in done.stdout + done.stderr
    first, second = checkpoints(tmp_path / "run")
    assert damage(second) is None and read_state(second).step == 2
    assert difference(first, second) > 0
