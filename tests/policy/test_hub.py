"""Models of the hub, from a local hub cache: what is there is used, what is not there is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from llmrl.errors import CatalogError
from llmrl.policy.hub import fetch

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache, offline, that holds org/tiny."""
    model = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_model, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return model / "snapshots" / COMMIT


def test_a_cached_model_needs_no_network(cache: Path) -> None:
    assert fetch("org/tiny") == cache


def test_a_model_that_cannot_be_had_is_one_line(cache: Path) -> None:
    with pytest.raises(CatalogError, match="org/other cannot be fetched from the hub") as caught:
        fetch("org/other")
    assert "\n" not in str(caught.value)


def test_a_model_without_safetensors_is_refused(cache: Path) -> None:
    (cache / "model.safetensors").unlink()
    with pytest.raises(CatalogError, match="no safetensors"):
        fetch("org/tiny")
