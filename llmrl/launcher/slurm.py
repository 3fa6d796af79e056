"""The batch script of a run on Slurm, from launch/slurm/train.sbatch: one task for each process.

There is no torchrun in it: a signal that Slurm sends reaches the trainers themselves, once, and their exit codes reach
the script. So it can tell a run that saved and stopped (143, queued again) from one that failed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrl.errors import ConfigError
from llmrl.launcher.command import network_environment
from llmrl.launcher.topology import Topology
from llmrl.settings.recipe import Recipe

TEMPLATE = Path(__file__).parents[1] / "launch" / "slurm" / "train.sbatch"
TIME = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """What Slurm is asked for. `grace_s` is how long before the time limit the trainers are told to save."""

    time: str = "24:00:00"
    grace_s: int = 120
    cores_per_process: int = 8
    partition: str | None = None
    account: str | None = None
    extra: Sequence[str] = ()  # further #SBATCH options, such as --constraint=h100

    def __post_init__(self) -> None:
        if not TIME.fullmatch(self.time):
            raise ConfigError(f"--time {self.time}: write it as hours:minutes:seconds or days-hours, as Slurm does")
        odd = [option for option in self.extra if not option.startswith("--") or "\n" in option]
        if odd:
            raise ConfigError(f"--sbatch {odd[0]!r}: options for sbatch start with --, such as --constraint=h100")


def batch_script(
    recipe: Recipe, chosen: Topology, arguments: Sequence[str], options: Sequence[str], settings: SlurmSettings
) -> str:
    """The text of the script. `arguments` is what follows `llmrl`, `options` what the first start adds to it."""
    run = recipe.run_dir.absolute()
    asked = {"partition": settings.partition, "account": settings.account}
    extra = [f"--{name}={value}" for name, value in asked.items() if value] + list(settings.extra)
    module = "llmrl.launcher.rank" if chosen.on_cpu and chosen.ranks_per_node > 1 else "llmrl"
    environment = network_environment(chosen)
    return _filled(
        TEMPLATE.read_text(),
        {
            "name": recipe.name,
            "nodes": str(chosen.nodes),
            "ranks": str(chosen.ranks_per_node),
            "cores": str(settings.cores_per_process),
            "gpus": "" if chosen.on_cpu else f"#SBATCH --gpus-per-node={chosen.gpus_per_node}",
            "time": settings.time,
            "grace": str(settings.grace_s),
            "log": str(run.parent / f"{recipe.name}-slurm-%j.log"),
            "extra": "\n".join(f"#SBATCH {option}" for option in extra),
            "folder": shlex.quote(str(Path.cwd())),
            "environment": "\n".join(f"export {key}={shlex.quote(value)}" for key, value in environment.items()),
            "arguments": shlex.join(arguments),
            "options": shlex.join(options),
            "run": shlex.quote(str(run)),
            "program": shlex.join([sys.executable, "-m", module]),
        },
    )


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = re.sub(r"@(\w+)@", lambda found: values[found[1]], template)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)^(#SBATCH.*)\n\n(?=#SBATCH)", r"\1\n", text))


def submit(script: str, file: Path) -> int:
    """Store the script at `file` and hand it to sbatch; returns sbatch's exit code. Raises ConfigError without Slurm."""
    check_installed()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script)
    return subprocess.run(["sbatch", str(file)], check=False).returncode


def check_installed() -> None:
    """Raise ConfigError on a machine without Slurm."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--slurm: there is no sbatch on this machine; run it on a login node of the cluster, or take the script "
            "of --dry-run there"
        )
