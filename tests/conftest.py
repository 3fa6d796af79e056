"""Fixtures that several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.skipped import mends

# Folders whose tests train and start processes.
LONG = frozenset(("train", "durability", "stages", "rollout", "policy", "launcher"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (`make test` gives files out in this order), or one worker would end with one and the other idle."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """End with what was skipped and the commands that would run it."""
    if hasattr(config, "workerinput"):
        return
    reasons = [str(report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    for line in mends(reasons):
        terminalreporter.write_line(line)


@pytest.fixture
def settings_as_before() -> Iterator[None]:
    """For tests that run a recipe in this process: torch's threads and determinism, and the environment, as they were."""
    import torch

    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (hidden 64, 2 layers, 2 heads of 32, 1 key-value head) with a byte tokenizer, as an HF folder."""
    from tests.tiny import random_model, save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny", random_model())


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same behind a random vision tower (hidden 64, 2 layers, 32 x 32 pixels), as an HF folder with its processor."""
    from tests.tiny import save_vlm

    return save_vlm(tmp_path_factory.mktemp("models"))
