"""`llmrl watch`: the report of a run in progress, on loopback, fresh at every look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from llmrl.commands.arguments import RunFolder

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

LOOPBACK = "127.0.0.1"


def watch(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two looks of the browser.")] = 10,
) -> None:
    """Serve a run's report while it trains; the page looks again by itself. Only this machine can see it."""
    server = report_server(run, port=port, every=every)
    address = f"http://{LOOPBACK}:{server.server_port}"
    Console(soft_wrap=True).print(f"{run}: {address} (Ctrl-C ends)", markup=False, highlight=False)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def report_server(run: Path, *, port: int, every: int) -> ThreadingHTTPServer:
    """A server on loopback whose only page is the report of `run` as it is now.

    Raises ConfigError if the port is taken.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from llmrl.errors import ConfigError

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            from llmrl.report.page import page
            from llmrl.report.read import read_run

            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in (LOOPBACK, "localhost"):  # a name that somebody else has pointed here
                self.send_error(403, "only for this machine")
                return
            if self.path != "/":
                self.send_error(404)
                return
            body = page(read_run(run)).encode("utf-8", "replace")
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Refresh", str(every))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Looks of a browser are no news."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Page)
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
