"""A model of the Hugging Face hub -> a local folder, once, before anything else needs it."""

from __future__ import annotations

from pathlib import Path

from llmrl.errors import CatalogError

# What a model needs; pickled weights (*.bin, *.pt) are not fetched and not loaded.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def fetch(name: str) -> Path:
    """The local copy of hub model `name` ("org/name"), downloaded with a progress bar if it is not there.

    Raises CatalogError: no such model, no access, no network and no copy, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CatalogError(f"model {name} cannot be fetched from the hub: {reason}") from error
    if not any(folder.glob("*.safetensors")):
        raise CatalogError(f"model {name} has no safetensors weights on the hub; other formats are not loaded")
    return folder
