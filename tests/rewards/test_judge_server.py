"""The LLM judge against a real vLLM server with a real model, on this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llmrl.rewards.judge import LLMJudge

MODEL = os.environ.get("LLMRL_MODEL", "")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """base_url of a vLLM server that is stopped again."""
    if not Path(MODEL, "config.json").is_file():
        pytest.skip("no model folder; set LLMRL_MODEL to a Hugging Face folder of a chat model")
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        MODEL,
        "--served-model-name",
        "judge",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "bfloat16",
        "--enforce-eager",
        "--max-model-len",
        "1024",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "2"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_real_server_answers_and_every_reply_is_a_score_or_a_named_error(server, trajectory):
    rubric = "Reply with exactly this line and nothing else: Score: 7"
    judge = LLMJudge(base_url=server, model="judge", rubric=rubric, max_tokens=24, timeout_s=120)
    scores = judge.score_batch([trajectory("4 + 4 is 8", "8"), trajectory("it is 9", "8"), trajectory("", "8")])
    assert scores[2].flags == ("no_answer",)
    for score in scores[:2]:  # a small model may give no score, but then its words are in the error
        assert (score.value is None) == bool(score.error)
        assert "the judge's reply has no last line" in score.error or 0.0 <= (score.value or 0.0) <= 1.0
        assert "did not answer" not in score.error


@pytest.mark.slow
def test_a_model_the_server_does_not_have_is_an_error_and_no_zero(server, trajectory):
    score = LLMJudge(base_url=server, model="absent", timeout_s=60)(trajectory("8", "8"))
    assert score.value is None
    assert "404" in score.error or "does not exist" in score.error
