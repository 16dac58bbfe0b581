"""The serve verb: a trained model on this machine for clients of OpenAI's API.

One text is made at a time; other requests wait in line, and leave it when their client goes. Everything that a client
can send is bounded: body, fields, rows, waiting requests, the time to send a body and to take a reply.
"""

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from core.errors import Stopped, UserError
from core.progress import say, track
from evals.complete import Completer, Piece, open_completer
from evals.config import EvalConfig
from evals.openai_api import Ask, Refused, Reply, error_body, parse_body
from model.sample import Sampling
from train.run import Run

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route
    from starlette.types import Message, Receive, Scope, Send
except ImportError as error:
    raise UserError(f"serve needs the package {error.name}; install it with `pip install -e .[serve]`") from None

MAX_BODY = 4 << 20  # bytes
MAX_WAITING = 16  # requests in line
MAX_CONNECTIONS = 64
PATIENCE = 30.0  # seconds for a client to send a body, and to take each piece of a reply
GRACE = 3.0  # seconds that requests under way have when the server is told to end
WARM_TOKENS = 512  # longer prompts compile when they come
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(config: EvalConfig, run: Run, workdir: Path, *, host: str, port: int) -> None:
    """Answers until SIGTERM or Ctrl-C."""
    with _bound(host, port) as listener:
        completer = open_completer(config, run, workdir, chat=True)
        warm_up(completer, config.sampling)
        service = Service(completer, workdir.resolve().name, config.sampling)
        host, port = listener.getsockname()[:2]
        server = make_server(service, host, port)
        try:
            server.run(sockets=[listener])
        except (KeyboardInterrupt, Stopped):  # which uvicorn repeats after its own end, by version
            if server.received is None:
                raise
    if server.received is not None:
        raise Stopped(server.received)


def warm_up(completer: Completer, sampling: Sampling) -> None:
    """Compiles the lengths to which prompts are padded, and a step."""
    most = min(WARM_TOKENS, completer.decoder.context)
    lengths = [16 << i for i in range(most.bit_length()) if 16 << i < most] + [most]
    for length in track(lengths, "serve: prompt lengths compiled", len(lengths)):
        for _ in completer.complete([[0] * length], max_tokens=2, sampling=sampling):
            pass


class Service:
    """Answers requests one at a time, in the order in which they came."""

    def __init__(self, completer: Completer, name: str, sampling: Sampling, max_waiting: int = MAX_WAITING):
        self.completer, self.name, self.sampling, self.max_waiting = completer, name, sampling, max_waiting
        self.lock, self.waiting, self.stopping = anyio.Lock(), 0, False
        self.connections: set[anyio.CancelScope] = set()

    def app(self, host: str = "127.0.0.1") -> Starlette:
        """The routes. Where only this machine can connect, names of others are refused: a page in a browser may
        have made its own name mean this machine, to read what is served here.
        """
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/completions", _Endpoint(self, chat=False), methods=["POST"]),
            Route("/v1/chat/completions", _Endpoint(self, chat=True), methods=["POST"]),
        ]
        hosts = list(LOOPBACK) if host in LOOPBACK else ["*"]
        return Starlette(
            routes=routes,
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
            exception_handlers={Refused: _refused, HTTPException: _http_error, Exception: _bug},
        )

    def stop(self) -> None:
        """Ends all that is under way."""
        self.stopping = True
        for scope in self.connections:
            scope.cancel()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits in line; refuses where the line is full."""
        if self.waiting >= self.max_waiting:
            raise Refused(f"{self.waiting} requests are waiting already; try again later", status=429)
        self.waiting += 1
        try:
            await self.lock.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self.lock.release()

    @contextlib.asynccontextmanager
    async def connected(self, receive: Receive) -> AsyncIterator[anyio.CancelScope]:
        """The block ends when its client goes away; all that it sent must have been read."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        with anyio.CancelScope() as scope:
            watching = asyncio.create_task(watch())
            self.connections.add(scope)
            try:
                yield scope
            finally:
                self.connections.discard(scope)
                watching.cancel()

    async def _health(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "model": self.name, "waiting": self.waiting})

    async def _models(self, _: Request) -> JSONResponse:
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "quintet"}
        return JSONResponse({"object": "list", "data": [model]})


class _Endpoint:
    """One of the two routes that make text, as an ASGI application."""

    def __init__(self, service: Service, *, chat: bool):
        self.service, self.chat = service, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, completer = self.service, self.service.completer
        settings = {"defaults": service.sampling, "vocab_size": completer.tokenizer.vocab_size}
        ask = parse_body(await _read_body(Request(scope, receive)), chat=self.chat, **settings)
        if ask.model not in (None, service.name):
            message = f"model: there is no {ask.model[:100]!r} here, only {service.name!r}"
            raise Refused(message, status=404, field="model", code="model_not_found")
        started = False
        async with service.connected(receive) as connection:

            async def deliver(message: Message) -> None:
                nonlocal started
                started = True
                with anyio.move_on_after(PATIENCE) as patience:
                    await send(message)
                if patience.cancelled_caught:
                    connection.cancel()

            async with service.turn():
                await self._answer(ask, scope, deliver)
        if service.stopping and not started:
            raise Refused("the server is about to end", status=503)

    async def _answer(self, ask: Ask, scope: Scope, send: Send) -> None:
        began, reply = time.monotonic(), None
        try:
            prompt_tokens, steps = await anyio.to_thread.run_sync(self._begin, ask)
            with contextlib.closing(steps):
                first = await _next(steps)  # reads the prompts, and may refuse them
                reply = Reply(ask, self.service.name, chat=self.chat, prompt_tokens=prompt_tokens)
                response = await self._response(reply, first, steps)
                await response(scope, anyio.sleep_forever, send)  # the caller watches the connection
        except UserError as error:
            raise Refused(str(error), field="messages" if self.chat else "prompt") from None
        finally:
            if reply is not None:
                written, seconds = reply.usage()["completion_tokens"], time.monotonic() - began
                say(f"serve: {scope['path']} read {prompt_tokens:,} and wrote {written:,} tokens in {seconds:.2f} s")

    def _begin(self, ask: Ask) -> tuple[int, Iterator[list[Piece]]]:
        """How many tokens all prompts have, and the text to come."""
        completer = self.service.completer
        if self.chat:
            prompts = [completer.chat_prompt(ask.messages, **ask.variables)]
        else:
            prompts = [completer.prompt(text) if isinstance(text, str) else text for text in ask.prompts]
        rows = [prompt for prompt in prompts for _ in range(ask.n)]
        settings = {"sampling": ask.sampling, "stop": ask.stop, "seed": ask.seed, "chat": self.chat}
        return sum(map(len, prompts)), completer.complete(rows, max_tokens=ask.max_tokens, **settings)

    async def _response(
        self, reply: Reply, first: list[Piece] | None, steps: Iterator[list[Piece]]
    ) -> JSONResponse | StreamingResponse:
        async def events() -> AsyncIterator[str]:
            pieces = first
            while pieces is not None:
                for chunk in reply.add(pieces):
                    yield _event(chunk)
                pieces = await _next(steps)
            for chunk in reply.last_chunks():
                yield _event(chunk)
            yield "data: [DONE]\n\n"

        if reply.ask.stream:
            return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        pieces = first
        while pieces is not None:
            reply.add(pieces)
            pieces = await _next(steps)
        return JSONResponse(reply.whole())


class Server(uvicorn.Server):
    """uvicorn's, which says when it listens, and bounds how long it ends."""

    received: int | None = None

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]):
        super().__init__(config)
        self.service, self.ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more requests; those under way have `GRACE` seconds."""
        asyncio.get_running_loop().call_later(GRACE, self.service.stop)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal: the first ends in good order, a second Ctrl-C at once."""
        if self.received is None:
            self.received = signal.Signals(sig)
        super().handle_exit(sig, frame)


def make_server(service: Service, host: str, port: int) -> Server:
    """The server of a service; `run(sockets=[...])` starts it."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    example = f"curl {address}/v1/completions -H 'Content-Type: application/json' -d '{{\"prompt\": \"def main(\"}}'"

    def ready() -> None:
        if host not in LOOPBACK:
            say("serve: whoever reaches this machine may use the model; there are no keys and no encryption")
        say(f"serve: {service.name} at {address}/v1 (Ctrl-C ends it); try\n  {example}")

    config = uvicorn.Config(
        service.app(host), http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
        limit_concurrency=MAX_CONNECTIONS, server_header=False,
    )  # fmt: skip
    return Server(config, service, ready)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address but does not listen yet, so that a taken port is told before a model is read."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port={port} must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {host}, port {port} ({reason}); choose others with --host and --port"
        ) from None
    return listener


async def _read_body(request: Request) -> bytes:
    """The body, if it is JSON by its header, short enough and in time."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("the header Content-Type must be application/json", status=415)
    body, size = [], 0
    try:
        with anyio.fail_after(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:  # read further for a while, or the client would not come to read why
                    body.clear()
                else:
                    body.append(part)
                if size > 8 * MAX_BODY:
                    break
    except TimeoutError:
        raise Refused(f"the body did not come within {PATIENCE:.0f} seconds", status=408) from None
    if size > MAX_BODY:
        raise Refused(f"the body has more than {MAX_BODY:,} bytes", status=413)
    return b"".join(body)


async def _next(steps: Iterator[list[Piece]]) -> list[Piece] | None:
    """The next step, made in a thread; one that has begun is waited for, even when the client is gone."""
    return await anyio.to_thread.run_sync(next, steps, None)


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


async def _refused(_: Request, error: Refused) -> JSONResponse:
    body = error_body(str(error), status=error.status, field=error.field, code=error.code)
    return JSONResponse(body, error.status, {"Retry-After": "1"} if error.status in (429, 503) else None)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(error_body(message, status=error.status_code), error.status_code, error.headers)


async def _bug(_: Request, error: Exception) -> JSONResponse:
    """Told shortly to the client; the traceback goes to standard error."""
    return JSONResponse(error_body(f"{type(error).__name__} on the server; its log has more", status=500), 500)
