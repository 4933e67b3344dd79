"""Serve the page on loopback, and the rows that match its filters as JSON lines."""

from __future__ import annotations

import json
import signal
import socket
import tempfile
from collections.abc import Iterable, Mapping

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..sampling.api_keys import names_loopback
from ..sampling.ledger import Price
from ..server.listener import bind
from . import markup, page, queries
from .catalog import Catalog
from .sources import read_sources


HOST = "127.0.0.1"
"""The only address the explorer listens on: there are no keys, so nobody else may ask."""

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio compiles the templates of its components in the browser, which needs 'unsafe-eval'
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Content Security Policy: the browser requests nothing from any other server, whatever the page contains."""


def make_app(catalog: Catalog) -> FastAPI:
    r"""
    Create the ASGI application: the page at `/` and the export at `/export.jsonl`.

    Args:
        catalog ([`~md_trl.explorer.catalog.Catalog`]):
            What to explore.

    Returns:
        [`~fastapi.FastAPI`]: The application. It answers only requests that name this machine in `Host`, so that no
            website can read it through a browser.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard)

    @app.get(page.EXPORT_ROUTE)
    def export(filters: str = "{}") -> Response:
        try:
            values = json.loads(filters)
            wanted = queries.Filters(**values | {"types": tuple(values.get("types", ()))})
        except (TypeError, ValueError, AttributeError) as error:
            return PlainTextResponse(f"Cannot read the filters: {error}", 400)
        headers = {"Content-Disposition": 'attachment; filename="thoughts.jsonl"'}
        return StreamingResponse(queries.export(catalog, wanted), media_type="application/x-ndjson", headers=headers)

    return page.gr.mount_gradio_app(
        app,
        page.build(catalog),
        path="/",
        server_name=HOST,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=page.theme(),
        css=markup.styles(),
    )


class _Guard:
    """Middleware that refuses requests from websites, and forbids the page to ask any other server."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not names_loopback(Headers(scope=scope).get("host", "")):
            message = "The explorer answers only on this machine, as 127.0.0.1 or localhost."
            await PlainTextResponse(message, 403)(scope, receive, send)
        else:

            async def send_guarded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["Content-Security-Policy"] = _POLICY
                    headers["X-Content-Type-Options"] = "nosniff"
                    headers["Referrer-Policy"] = "no-referrer"
                await send(message)

            await self._app(scope, receive, send_guarded)


def explore(
    datasets: Iterable[str] = (),
    stores: Iterable[str] = (),
    results: Iterable[str] = (),
    prices: Mapping[str, Price] | None = None,
    port: int = 0,
) -> None:
    r"""
    Read all sources and serve the page until Ctrl-C or SIGTERM.

    Args:
        datasets (`Iterable[str]`, *optional*), stores (`Iterable[str]`, *optional*):
            Folders of mixed rows, and stores, as in [`~md_trl.explorer.sources.read_sources`].
        results (`Iterable[str]`, *optional*):
            Folders of results.
        prices (`Mapping[str, Price]`, *optional*):
            Prices by model, to show what the questions of a store cost.
        port (`int`, *optional*, defaults to `0`):
            Port to listen on; 0 picks a free one.

    Raises:
        `OSError`: The port cannot be used.
        `FileNotFoundError`: A source does not exist.
        `InputError`: No source is named, or one cannot be read.
    """
    # SIGTERM ends the server like Ctrl-C, so that its temporary folder is removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        bind(HOST, port) as listener,
        tempfile.TemporaryDirectory(prefix="md-trl-explore-", ignore_cleanup_errors=True) as folder,
    ):
        try:
            catalog = read_sources(folder, datasets, stores, results, prices, progress=True)
            config = uvicorn.Config(make_app(catalog), log_level="warning", access_log=False, server_header=False)
            _Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        print(f"http://{host}:{port} is ready. Ctrl-C ends it.", flush=True)
