"""A node that loses its network: servers in network namespaces of their own, and one whose cable is pulled."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.pool import EnginePool, Patience
from llmrl.rollout.serve import server_command, server_environment, share_of_cores
from llmrl.rollout.servers import Server
from llmrl.rollout.transfer import Files
from tests.rollout.test_placement import KEY, START_S, greedy, long, settings, weights

PORT = 18477


def _may_make_namespaces() -> bool:
    name = f"llmrl-probe-{os.getpid()}"
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    return subprocess.run(["ip", "netns", "del", name], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm"),
    pytest.mark.skipif(not _may_make_namespaces(), reason="no right to make network namespaces"),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace with one cable to this one: we are 10.77.n.1, it is 10.77.n.2."""

    number: int

    @property
    def name(self) -> str:
        return f"llmrl-{os.getpid()}-{self.number}"

    @property
    def cable(self) -> str:
        return f"ll{os.getpid() % 10**6}-{self.number}"

    @property
    def host(self) -> str:
        return f"10.77.{self.number}.2"

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("address", "add", f"10.77.{self.number}.1/24", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        ip("-n", self.name, "address", "add", f"{self.host}/24", "dev", "eth0")

    def plug(self, state: str) -> None:
        """Set the far end of the cable "up" or "down": ours stays, or the route by which this host answers would go."""
        ip("-n", self.name, "link", "set", "eth0", state)

    def remove(self) -> None:
        for words in (("link", "del", self.cable), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], capture_output=True)

    def serve(self, settings: EngineSettings, log: Path) -> subprocess.Popen[bytes]:
        cores = share_of_cores(self.number, 2)
        command = server_command(settings, port=PORT, cores=cores, host=self.host)
        environment = server_environment(settings, key=KEY, cores=cores)
        with log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=environment, start_new_session=True,
            )  # fmt: skip


@pytest.fixture
def nodes(tmp_path: Path, tiny_model: Path) -> Iterator[list[Node]]:
    made = [Node(0), Node(1)]
    servers = []
    try:
        for node in made:
            node.make()
            servers.append(node.serve(settings(tiny_model), tmp_path / f"{node.number}.log"))
        deadline = time.monotonic() + START_S
        for node, server in zip(made, servers, strict=True):
            while not _answers(node):
                log = (tmp_path / f"{node.number}.log").read_text()[-3000:]
                assert server.poll() is None and time.monotonic() < deadline, log
                time.sleep(0.5)
        yield made
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        for node in made:
            node.remove()


def _answers(node: Node) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://{node.host}:{PORT}/health", timeout=5.0, trust_env=False).status_code == 200
    return False


def test_a_node_without_a_network_is_left_out_and_taken_back_with_the_newest_weights(
    nodes: list[Node], tmp_path: Path
) -> None:
    patience = Patience(stall_s=3.0, start_s=START_S, update_s=60.0)
    transfer = Files(tmp_path)
    made = [Server(f"http://{node.host}:{PORT}", transfer=transfer, key=KEY) for node in nodes]
    pool = EnginePool(made, transfer, patience=patience)
    servers = pool.members
    try:
        pool.load(weights(1), version=1)
        first = [c.tokens for c in pool.generate(greedy())]
        threading.Timer(0.3, nodes[1].plug, ["down"]).start()
        begin = time.monotonic()
        found = pool.generate(long(64))
        assert len(found) == 64 and all(c.tokens for c in found)
        assert time.monotonic() - begin < 60
        faults = pool.take_faults()
        assert faults.restarts == 1 and 1 <= faults.regenerated <= 64
        assert not servers[1].up and servers[1].why
        pool.load(weights(2), version=2)  # goes to the one that is there
        second = [c.tokens for c in pool.generate(greedy())]
        assert second != first
        nodes[1].plug("up")
        deadline = time.monotonic() + 60
        while not servers[1].up:
            assert time.monotonic() < deadline, servers[1].why
            time.sleep(0.2)
        nodes[0].plug("down")  # now all work goes to the one that was away
        assert [c.tokens for c in pool.generate(greedy())] == second
    finally:
        pool.close()
