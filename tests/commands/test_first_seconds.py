"""Plans and mistakes in recipes are told before torch is imported, which takes longer than everything before it."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmrl.hardware import bf16_speed

RECIPE = "recipes/arithmetic/grpo.yaml"
ROOT = Path(__file__).parents[2]
SLOW = "('torch', 'transformers', 'vllm', 'scipy', 'datasets')"


@pytest.mark.parametrize(
    "command",
    [
        ["plan", RECIPE],
        ["plan", RECIPE, "train.stps=1"],
        ["train", RECIPE, "algo.clip_hihg=1"],
        ["train", RECIPE, "algo.name=gpro"],
        ["train", RECIPE, "algo.clip_high=-1"],
        ["train", RECIPE, "reward.exact.args.x=1"],
        ["train", RECIPE, "controller={name: sca}"],
        ["train", RECIPE, "controller={name: sac, knobs: {clip_hihg: {low: 0.1, high: 1}}}"],
        ["train", RECIPE, "eval.tasks=[gms8k]"],
    ],
    ids=lambda command: " ".join(command[2:]) or command[0],
)
def test_what_needs_no_model_imports_no_torch(command):
    bf16_speed()  # measured once a machine, by torch
    code = (
        "import sys\nfrom llmrl import cli\n"
        f"sys.argv = ['llmrl', *{command!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code or 0\n"
        f"print(code, [name for name in {SLOW} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == [f"{0 if command == ['plan', RECIPE] else 2} []"], done.stdout + done.stderr
