"""The endpoint engine against a local HTTP server that speaks the protocol, and breaks it in the usual ways."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import llmrl.rollout.servers as servers
from llmrl.errors import EngineError
from llmrl.rollout.pool import EnginePool
from llmrl.rollout.servers import endpoints
from llmrl.types import Request, Sampling, StatusKind
from tests.eval.fakes import byte_tokenizer, opened, pools_closed  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("pools_closed")


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.failures = 0  # how many requests to answer with 503 first
        self.models = ["served"]
        self.reply: dict[str, Any] = {}
        self.delay_s = 0.0
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            failing = self.server.failures > 0
            self.server.failures -= failing
            self.server.bodies.append(body)
        time.sleep(self.server.delay_s)
        if failing:
            self._send(503, {"error": "busy"})
        elif body["max_tokens"] == 0:
            self._send(400, {"error": "max_tokens must be positive"})
        else:
            text = f"said {body['prompt'][0]}"
            choice = {
                "text": text,
                "finish_reason": "stop",
                "token_ids": [1, 2],
                "logprobs": {"token_logprobs": [-1, -2]},
            }
            self._send(200, {"choices": [{**choice, **self.server.reply}]})

    def _send(self, code: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(servers, "WAIT_S", 0.01)
    found = _Server()
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def _engine(*servers: _Server, **more: Any) -> EnginePool:
    urls = [f"http://127.0.0.1:{server.server_address[1]}/v1/" for server in servers]
    return opened(endpoints(urls, tokenizer=byte_tokenizer(), concurrency=4, timeout_s=10, **more))


def _requests(count: int, **more: Any) -> list[Request]:
    settings = {"max_tokens": 5, "temperature": 0.6, "top_p": 0.9, "seed": 7, **more}
    return [Request(tokens=(i, 1), sampling=Sampling(**settings)) for i in range(count)]


def test_token_ids_and_sampling_reach_the_server_and_answers_come_back_in_order(server: _Server) -> None:
    found = _engine(server).generate(_requests(9, stop=("X",), top_k=3))
    assert [one.text for one in found] == [f"said {i}" for i in range(9)]
    assert found[0].tokens == (1, 2)
    assert found[0].logprobs == (-1, -2)
    assert found[0].status.kind is StatusKind.DONE
    body = server.bodies[0]
    wanted = {
        "model": "served",
        "max_tokens": 5,
        "temperature": 0.6,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["X"],
        "top_k": 3,
    }
    assert {name: body[name] for name in wanted} == wanted
    assert sorted(one["prompt"] for one in server.bodies) == [[i, 1] for i in range(9)]


def test_without_token_ids_tokens_are_counted_and_logprobs_unknown(server: _Server) -> None:
    server.reply = {"token_ids": None, "logprobs": None, "finish_reason": "length"}
    (found,) = _engine(server).generate(_requests(1))
    assert len(found.tokens) == len("said 0")
    assert all(value != value for value in found.logprobs)
    assert found.status.kind is StatusKind.TRUNCATED


def test_a_busy_server_is_asked_again(server: _Server) -> None:
    server.failures = 3
    assert len(_engine(server).generate(_requests(1))) == 1
    assert len(server.bodies) == 4


def test_a_server_that_stays_away_or_refuses_is_an_engine_error(server: _Server) -> None:
    engine = _engine(server)
    with pytest.raises(EngineError, match=r"refused a request: 400 .*max_tokens must be positive"):
        engine.generate(_requests(1, max_tokens=0))
    assert len(server.bodies) == 1
    server.failures = 100
    with pytest.raises(EngineError, match=r"did not answer in 4 tries, at last: 503"):
        engine.generate(_requests(1))
    server.failures = 0
    server.reply = {"text": None, "token_ids": None}
    with pytest.raises((EngineError, ValueError)):
        engine.generate(_requests(1))
    with pytest.raises(EngineError, match="did not answer"):
        endpoints(["http://127.0.0.1:9/v1"], tokenizer=None)


def test_the_served_model_is_found_or_its_names_are_told(server: _Server) -> None:
    server.models = ["a", "b"]
    assert len(_engine(server, model="b").generate(_requests(1))) == 1
    assert server.bodies[0]["model"] == "b"
    with pytest.raises(EngineError, match="serves a, b, not c; give --model"):
        _engine(server, model="c")


@contextmanager
def another() -> Iterator[_Server]:
    second = _Server()
    thread = threading.Thread(target=second.serve_forever)
    thread.start()
    try:
        yield second
    finally:
        second.shutdown()
        second.server_close()
        thread.join()


def test_every_request_goes_to_the_least_busy_server(server: _Server) -> None:
    with another() as second:
        server.delay_s = 1.0
        found = _engine(server, second).generate(_requests(40))
        assert [one.text for one in found] == [f"said {i}" for i in range(40)]
    assert len(server.bodies) + len(second.bodies) == 40
    assert 1 <= len(server.bodies) <= 10 < len(second.bodies)


def test_a_server_that_dies_is_left_out_and_its_requests_are_asked_elsewhere(server: _Server) -> None:
    notes: list[str] = []
    with another() as second:
        engine = _engine(server, second, say=notes.append)
        second.failures = 1000  # alive when asked for its models, then no more
        found = engine.generate(_requests(30))
        assert [one.text for one in found] == [f"said {i}" for i in range(30)]
        assert len(notes) == 1 and "the others go on" in notes[0]
        asked = len(second.bodies)
        engine.generate(_requests(10))
        assert len(second.bodies) == asked  # not asked again
        server.failures = 1000
        with pytest.raises(EngineError, match="did not answer in 4 tries"):
            engine.generate(_requests(3))


def test_what_is_no_url_is_refused(server: _Server) -> None:
    with pytest.raises(EngineError, match=r"'localhost:8000' is no URL; write it like http://"):
        endpoints(["localhost:8000"], tokenizer=None)
