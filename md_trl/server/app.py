"""The HTTP side of the server, on Starlette and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..openai_requests import RequestError, read_json
from ..reasoner import MixedReasoner, Reasoned
from ..sampling.api_keys import Key, names_loopback
from .chat_requests import ChatRequest, check_model, read_chat_request
from .replies import Reply, dumps, event
from .worker import Job, Worker


MAX_BODY = 1 << 16
"""Maximum size of a request in bytes. A request holds one question."""
SECONDS_TO_FINISH = 10
"""How long requests may go on after the server was told to stop."""
SECONDS_BETWEEN_COMMENTS = 10.0
"""How long a stream is silent at most. A proxy may close a connection that is silent for long."""

ROUTES = "POST /v1/chat/completions, GET /v1/models, GET /health"


def make_app(reasoner: MixedReasoner, model: str, key: Key | None = None) -> Starlette:
    r"""
    Create the ASGI application.

    Args:
        reasoner ([`~md_trl.reasoner.MixedReasoner`]):
            What answers. Its settings are the defaults of requests.
        model (`str`):
            Name under which the model is served.
        key ([`~md_trl.sampling.api_keys.Key`], *optional*):
            Key that requests must bring. Without one, only clients that address this machine by a loopback name are
            answered, so that no website can reach the server through a browser.

    Returns:
        [`~starlette.applications.Starlette`]: The application.
    """
    service = _Service(reasoner, model)
    app = Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model_by_name),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, key=key)],
        exception_handlers={RequestError: _refused, HTTPException: _not_served, Exception: _internal_error},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    app.state.worker = service.worker
    return app


def bind(host: str, port: int) -> socket.socket:
    r"""
    Reserve a port, before a model is loaded.

    Args:
        host (`str`):
            Address to listen on.
        port (`int`):
            Port to listen on; 0 picks a free one.

    Returns:
        [`~socket.socket`]: The socket.

    Raises:
        `OSError`: The address or the port cannot be used.
    """
    try:
        if not 0 <= port < 1 << 16:  # looking up the address would cut off the upper bits
            raise OverflowError("port must be 0-65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # a port in use shows here
    except (OSError, OverflowError) as error:
        message = (
            f"cannot listen on {host}:{port} ({error}). Choose another `--port` (0 picks a free one) or `--host`."
        )
        raise OSError(message) from None
    return listener


def run(app: Starlette, listener: socket.socket, ready: str) -> None:
    r"""
    Serve until Ctrl-C or SIGTERM. Then no more requests are accepted, and those under way have ten seconds.

    Args:
        app ([`~starlette.applications.Starlette`]):
            The application.
        listener ([`~socket.socket`]):
            Socket to listen on, see [`bind`].
        ready (`str`):
            Line to print once the server accepts requests.

    Raises:
        `KeyboardInterrupt`: After Ctrl-C.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2 * SECONDS_TO_FINISH,
    )
    _Server(config, ready, app.state.worker).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: str, worker: Worker):
        super().__init__(config)
        self._ready, self._worker = ready, worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn cancels requests without telling the callers why, so they are refused before that.
        asyncio.get_running_loop().call_later(SECONDS_TO_FINISH, self._worker.refuse_all)
        await super().shutdown(sockets)


class _Service:
    """The routes."""

    def __init__(self, reasoner: MixedReasoner, model: str):
        self._reasoner, self._model = reasoner, model
        self.worker = Worker()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        yield
        await asyncio.to_thread(self.worker.stop)

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok", "waiting": self.worker.waiting})

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._description()]})

    async def model_by_name(self, request: Request) -> Response:
        check_model(request.path_params["name"], self._model)
        return _json(self._description())

    async def chat(self, request: Request) -> Response:
        asked = read_chat_request(read_json(await _read_body(request)), self._model, self._reasoner)
        job, reply = Job(asked.question, asked.reasoner), Reply(self._model)
        self.worker.submit(job)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
            return StreamingResponse(_events(job, reply, asked), media_type="text/event-stream", headers=headers)
        answer, gone = asyncio.ensure_future(job.answer()), asyncio.ensure_future(_hang_up(request))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)  # nobody reads it
            return _json(reply.completion(answer.result(), job.tokens.to_dict()))
        finally:
            job.hung_up = True
            answer.cancel()
            gone.cancel()

    def _description(self) -> dict[str, object]:
        return {"id": self._model, "object": "model", "created": 0, "owned_by": "md_trl"}


async def _events(job: Job, reply: Reply, asked: ChatRequest) -> AsyncIterator[str]:
    news = asyncio.ensure_future(job.next())
    try:
        yield reply.start()
        while True:
            await asyncio.wait({news}, timeout=SECONDS_BETWEEN_COMMENTS)
            if not news.done():
                yield ": still sampling\n\n"
            elif isinstance(found := news.result(), Reasoned):
                break
            else:
                yield reply.progress(found)
                news = asyncio.ensure_future(job.next())
        for text in reply.end(found, job.tokens.to_dict(), asked.include_usage):
            yield text
    except RequestError as error:
        yield event(error.body())
    finally:
        # A caller that hangs up cancels this.
        job.hung_up = True
        news.cancel()


async def _hang_up(request: Request) -> None:
    """Wait until the caller closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A website cannot send this type to another server without asking that server first.
    if kind != "application/json":
        raise RequestError(415, f"The `Content-Type` must be application/json, not {kind[:80]!r}.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RequestError(413, f"The request has more than {MAX_BODY} bytes. Send one question.")
    return body


class _Guard:
    """Middleware that lets only those through who may ask. Everybody may ask for `/health`."""

    def __init__(self, app: ASGIApp, key: Key | None):
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["path"] != "/health":
            headers = Headers(scope=scope)
            if self._key is None and not names_loopback(headers.get("host", "")):
                message = "Without an API key, this server answers only on this machine, as 127.0.0.1 or localhost."
                app = _error(RequestError(403, f"{message} Start it with `--api_key_env`."))
            elif self._key is not None and not self._matches(headers.get("authorization", "")):
                message = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
                app = _error(RequestError(401, message, code="invalid_api_key"), {"WWW-Authenticate": "Bearer"})
        await app(scope, receive, send)

    def _matches(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        # Headers are read as Latin-1, whatever bytes they hold.
        sent = key.strip().encode("latin-1", "replace")
        return scheme.lower() == "bearer" and hmac.compare_digest(sent, self._key.encode())


async def _refused(request: Request, error: RequestError) -> Response:
    return _error(error)


async def _not_served(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:80]} is not served. This server supports {ROUTES}."
    return _error(RequestError(error.status_code, message), error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return _error(RequestError(500, "The server failed. Its log says why."))


def _error(error: RequestError, headers: dict[str, str] | None = None) -> Response:
    return _json(error.body(), error.status, headers)


def _json(body: dict[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"} | dict(headers or {})
    return Response(dumps(body), status, headers, media_type="application/json")
