"""Programs that nobody trusts, run in isolation: `run_program` and its result; the rest of the package is its inside."""

from llmrl.rewards.sandbox.box import RUNGS, Limits, isolation_report
from llmrl.rewards.sandbox.plan import program_names
from llmrl.rewards.sandbox.run import ProgramResult, Status, run_program
from llmrl.rewards.sandbox.starter import SandboxError

__all__ = [
    "RUNGS",
    "Limits",
    "ProgramResult",
    "SandboxError",
    "Status",
    "isolation_report",
    "program_names",
    "run_program",
]
