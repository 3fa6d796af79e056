"""Fixtures that several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (hidden 64, 2 layers, 2 heads of 32, 1 key-value head) with a byte tokenizer, as an HF folder."""
    from tests.tiny import random_model, save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny", random_model())
