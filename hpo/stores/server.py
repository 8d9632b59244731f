"""A store's studies over HTTP: how workers elsewhere reach what lies in a file of this machine.

    event loop: connections, waiting claims, who asked what already
     |- one thread, one handle: the operations, in their order (`expire` needs the same handle each time)
     '- a few threads, a handle each time: files and long reads, which hold up no heartbeat

A write is applied once, however often it is asked for: its answer is kept under the key of the call. Every
request carries the token; nothing that arrives is executed or unpickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import itertools
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hpo.core.errors import HpoError, NoSuchStudy, StoreError, StoreUnreachable
from hpo.stores import Catalog, Store, connect, file_of
from hpo.stores.answers import GONE, Answer, Answers, Call
from hpo.stores.documents import Fields, dump, file_document, headed, load, read_claim, read_identity
from hpo.stores.rpc import (
    CALL,
    GET_FILE,
    KEY_HEADER,
    LONGEST_POLL_SECONDS,
    MOST_BODY_BYTES,
    MOST_HEADER_BYTES,
    OPERATIONS,
    PROTOCOL,
    PROTOCOL_HEADER,
    PUT_FILES,
    SHA256_HEADER,
    STREAM,
    STREAMS,
    error_document,
)
from hpo.stores.sqlite_file import files_folder
from hpo.stores.waiting import Closing, Waiting

BULK_THREADS = 4
IDLE_SECONDS = 60.0  # a body of which nothing arrives for so long will not arrive
CLOSE_SECONDS = 5  # for requests under way, when the server closes
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
INLINE_BYTES = 1 << 16  # a larger document is read in another thread
CHUNK_BYTES = 1 << 20
STREAM_LINES = 500

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreServer:
    """A server that runs. ``url``: where it listens."""

    url: str
    _thread: threading.Thread

    def wait(self) -> None:
        """Until the server has ended."""
        self._thread.join()


@contextlib.contextmanager
def serving(
    url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str,
    study: str | None = None,
    opened: Callable[[str], Catalog] = connect,
) -> Iterator[StoreServer]:
    """Serve the store at ``url`` in a thread of this process, while the block lasts.

    Args: port: 0 for any that is free; token: what every request must bring; study: serve this one alone;
    opened: how a handle on the store is had.
    Raises StoreUnreachable when the address can't be had.
    """
    with contextlib.ExitStack() as closing:
        studies = closing.enter_context(contextlib.closing(_Studies(url, study, opened)))
        listener = closing.enter_context(_listening(host, port))
        service = _Service(studies)
        server = uvicorn.Server(
            uvicorn.Config(
                _Door(service.application(), token),
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        thread = threading.Thread(target=server.run, args=([listener],), name="hpo-store-server", daemon=True)
        bound, bound_port = listener.getsockname()[:2]
        thread.start()
        try:
            yield StoreServer(f"http://{f'[{bound}]' if ':' in bound else bound}:{bound_port}", thread)
        finally:
            service.close()
            server.should_exit = True
            thread.join()


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # The protocol by its number: asyncio sets TCP_NODELAY on no other socket, and every answer would take
        # the 40 ms of a delayed acknowledgement.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise StoreUnreachable(
            f"no server can listen on {host}:{port}: {text}",
            "choose another port, or an address of this machine",
        ) from error
    return listener


class _Door:
    """Lets in who brings the token and speaks this protocol, whatever the path."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner = inner
        self._expected = f"Bearer {token.strip()}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            answer = _refusal(401, "the token is missing or wrong")
            await answer(scope, receive, send)
        elif headers.get(PROTOCOL_HEADER.lower().encode()) != PROTOCOL.encode():
            answer = _refusal(426, f"this server speaks protocol {PROTOCOL} of hpo")
            await answer(scope, receive, send)
        else:
            await self._inner(scope, receive, send)


class _Studies:
    """The store as the server uses it: which thread, which handle, which studies.

    ``only``: the one study there is, None for all.
    """

    def __init__(self, url: str, only: str | None, opened: Callable[[str], Catalog]) -> None:
        self._only = only
        self._handle = opened
        self._catalog = opened(url)
        self.url = self._catalog.url
        self._stores: dict[str, Store] = {}
        self._operating = ThreadPoolExecutor(1, "hpo-store")
        self._bulk = ThreadPoolExecutor(BULK_THREADS, "hpo-store-bulk")

    def close(self) -> None:
        self._bulk.shutdown()
        self._operating.shutdown()
        self._catalog.close()

    async def operate(self, call: Callable[[], T]) -> T:
        """On the one thread that uses the lasting handle: `names`, `create` and `store`."""
        return await asyncio.get_running_loop().run_in_executor(self._operating, call)

    async def aside(self, call: Callable[[], T]) -> T:
        """On a thread where it may take its time."""
        return await asyncio.get_running_loop().run_in_executor(self._bulk, call)

    def names(self) -> list[str]:
        return [name for name in self._catalog.names() if self._only in (None, name)]

    def store(self, study: str) -> Store:
        if study not in self._stores:
            self._stores[study] = self._open(self._catalog, study)
        return self._stores[study]

    def create(self, study: str, document: Any) -> None:
        identity = read_identity(study, document)
        if self._only not in (None, study):
            raise _other_study(study, self._only)
        self._catalog.create(identity)

    def apart(self, study: str) -> tuple[Catalog, Store]:
        """The study through a handle of its own, to be closed."""
        catalog = self._handle(self.url)
        try:
            return catalog, self._open(catalog, study)
        except BaseException:
            catalog.close()
            raise

    def _open(self, catalog: Catalog, study: str) -> Store:
        if self._only not in (None, study):
            raise _other_study(study, self._only)
        return catalog.open(study)


def _other_study(study: str, only: str | None) -> NoSuchStudy:
    return NoSuchStudy(f"no study {study!r} is served here", f"its studies: {only}")


class _Service:
    """What the server does with each request."""

    def __init__(self, studies: _Studies) -> None:
        self._studies = studies
        self._answers = Answers()
        self._waiting = Waiting(lambda study, call: studies.operate(lambda: call(studies.store(study))))
        self._loop: asyncio.AbstractEventLoop | None = None

    def application(self) -> ASGIApp:
        handlers = {
            CALL: self._call,
            STREAM: self._stream,
            PUT_FILES: self._put_files,
            GET_FILE: self._get_file,
        }
        return Starlette(
            routes=[Route(path, self._guarded(handlers[path]), methods=["POST"]) for path in handlers]
        )

    def close(self) -> None:
        """End the waiting; from another thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._waiting.close)

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            self._loop = asyncio.get_running_loop()
            try:
                return await handler(request)
            except asyncio.CancelledError:  # it took longer than the server may to close
                return _response(_explained(Closing("the server ends")))
            except Exception as error:
                return _response(_explained(error))

        return handle

    async def _call(self, request: Request) -> Response:
        body = await _Body(request).all(MOST_BODY_BYTES)
        asked = Fields(
            load(body) if len(body) <= INLINE_BYTES else await self._studies.aside(lambda: load(body)),
            "the request",
        )
        name, arguments = asked.text("call"), Fields(asked.value("with"), "the arguments")
        study = asked.text_or_none("study")

        async def work(call: Call) -> Answer:
            return await _answered(self._operated(study, name, arguments, call))

        if name in OPERATIONS and not OPERATIONS[name].is_write:
            return _response(await work(Call([request])))
        return _response(await self._answers.once(_key(request), request, work))

    async def _operated(self, study: str | None, name: str, arguments: Fields, call: Call) -> Answer:
        studies = self._studies
        if name == "names":
            return await studies.operate(lambda: _result(studies.names()))
        if study is None:
            raise ValueError(f"{name} needs a study")
        if name == "create":
            await studies.operate(lambda: studies.create(study, arguments.value("identity")))
            return _result(None)
        if name not in OPERATIONS:
            raise ValueError(f"there is no operation {name!r}")
        if name == "claim" and (seconds := arguments.number("wait_seconds")) > 0:
            seconds = min(seconds, LONGEST_POLL_SECONDS)
            return _result(await self._waiting.claim(study, arguments, call, seconds))
        return await studies.operate(lambda: _result(OPERATIONS[name].run(studies.store(study), arguments)))

    async def _stream(self, request: Request) -> Response:
        asked = Fields(load(await _Body(request).all(INLINE_BYTES)), "the request")
        name, arguments = asked.text("call"), Fields(asked.value("with"), "the arguments")
        if name not in STREAMS:
            raise ValueError(f"{name!r} is not read in lines")
        study = asked.text("study")
        catalog, store = await self._studies.aside(lambda: self._studies.apart(study))
        try:
            documents = iter(STREAMS[name](store, arguments))
        except BaseException:
            catalog.close()
            raise

        def lines() -> bytes:
            return b"".join(
                dump(document).encode() + b"\n" for document in itertools.islice(documents, STREAM_LINES)
            )

        async def body() -> AsyncIterator[bytes]:
            stopped = None
            try:
                while portion := await self._studies.aside(lines):
                    yield portion
            except HpoError as error:
                stopped = error_document(error)
            finally:
                catalog.close()
            yield headed({"stopped": stopped})

        return StreamingResponse(body(), headers=HEADERS)

    async def _put_files(self, request: Request) -> Response:
        body = _Body(request)
        try:
            folder = await self._studies.aside(lambda: _folder(self._studies.url))
            try:
                return await self._uploaded(request, body, Path(folder.name))
            finally:
                await self._studies.aside(folder.cleanup)
        finally:
            # Who sends a body hears the answer only when all of it was taken.
            await body.drain()

    async def _uploaded(self, request: Request, body: _Body, folder: Path) -> Response:
        asked = Fields(load(await body.line(MOST_HEADER_BYTES)), "the header")
        study, trial, drop = asked.text("study"), asked.whole_or_none("trial"), asked.texts("drop")
        claim = None if asked.value("claim") is None else read_claim(asked.value("claim"))
        files: dict[str, Path] = {}
        for number, one in enumerate(asked.items("files")):
            fields = Fields(one, "a file")
            name, size = fields.text("name"), fields.whole("size")
            if size < 0:
                raise ValueError(f"the size of {name!r} is negative")
            if name in files:
                raise ValueError(f"the file {name!r} comes twice")
            files[name] = folder / str(number)
            with open(files[name], "xb") as file:
                async for piece in body.pieces(size):
                    await self._studies.aside(functools.partial(file.write, piece))
        if await body.has_more():
            raise ValueError("more arrived than the header announced")

        def put() -> Answer:
            catalog, store = self._studies.apart(study)
            with contextlib.closing(catalog):
                kept = store.put_files(files, trial, drop=drop, claim=claim)
            return _result(list(map(file_document, kept)))

        async def work(_: Call) -> Answer:
            return await _answered(self._studies.aside(put))

        # Only from here on the call counts as begun: an upload that was cut is begun anew.
        return _response(await self._answers.once(_key(request), request, work))

    async def _get_file(self, request: Request) -> Response:
        asked = Fields(load(await _Body(request).all(INLINE_BYTES)), "the request")
        study, name, trial = asked.text("study"), asked.text("name"), asked.whole_or_none("trial")

        def found() -> tuple[IO[bytes], str, int] | None:
            catalog, store = self._studies.apart(study)
            with contextlib.closing(catalog), _folder(self._studies.url) as folder:
                copy = Path(folder) / "copy"
                if not store.get_file(name, copy, trial):
                    return None
                file = open(copy, "rb")  # noqa: SIM115 - it outlives its name, and goes with the last who reads it
                return file, hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

        opened = await self._studies.aside(found)
        if opened is None:
            return Response(status_code=204, headers=HEADERS)
        file, sha256, size = opened

        async def body() -> AsyncIterator[bytes]:
            with file:
                file.seek(0)
                while chunk := await self._studies.aside(lambda: file.read(CHUNK_BYTES)):
                    yield chunk

        headers = HEADERS | {SHA256_HEADER: sha256, "Content-Length": str(size)}
        return StreamingResponse(body(), headers=headers, media_type="application/octet-stream")


class _Body:
    """A request's body, as it arrives. Raises ClientDisconnect when it ends before it is whole."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._rest = b""

    async def _arrives(self) -> bool:
        """More bytes have come; False at the end."""
        try:
            while chunk := await asyncio.wait_for(anext(self._stream, None), IDLE_SECONDS):
                self._rest += chunk
                return True
        except TimeoutError:
            raise ClientDisconnect from None
        return False

    async def has_more(self) -> bool:
        return bool(self._rest) or await self._arrives()

    async def all(self, most: int) -> bytes:
        parts = []
        size = 0
        while await self.has_more():
            parts.append(self._taken(len(self._rest)))
            size += len(parts[-1])
            if size > most:
                raise _TooLarge(f"the request is larger than {most} bytes")
        return b"".join(parts)

    async def line(self, most: int) -> bytes:
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > most:
                raise _TooLarge(f"the header is larger than {most} bytes")
            if not await self._arrives():
                raise ValueError("the header has no end")
        return self._taken(end + 1)

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """So many bytes, in pieces worth a write."""
        while size > 0:
            while len(self._rest) < min(size, CHUNK_BYTES) and await self._arrives():
                pass
            if not self._rest:
                raise ValueError("less arrived than the header announced")
            piece = self._taken(min(size, len(self._rest)))
            size -= len(piece)
            yield piece

    async def drain(self) -> None:
        with contextlib.suppress(ClientDisconnect):
            while await self.has_more():
                self._rest = b""

    def _taken(self, size: int) -> bytes:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


class _TooLarge(ValueError):
    """More than the server takes into its memory."""


HEADERS = {PROTOCOL_HEADER: PROTOCOL}


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, headers=HEADERS, media_type="application/json")


def _result(value: Any) -> Answer:
    return Answer(200, dump({"result": value}).encode())


def _refusal(status: int, sentence: str) -> Response:
    return _response(_error(status, StoreError(sentence)))


def _error(status: int, error: HpoError) -> Answer:
    return Answer(status, dump({"error": error_document(error)}).encode())


async def _answered(work: Awaitable[Answer]) -> Answer:
    """What the work answers, or the answer that its error is."""
    try:
        return await work
    except Exception as error:
        return _explained(error)


def _explained(error: Exception) -> Answer:
    match error:
        case Closing():
            return _error(GONE, error)
        case HpoError():
            return _error(409, error)
        case _TooLarge():
            return _error(413, StoreError(str(error)))
        case ClientDisconnect():
            return _error(400, StoreError("the request was cut"))
        case ValueError() | TypeError() | OverflowError():
            return _error(400, StoreError(f"the request is none of hpo's: {error}"))
    return _error(500, StoreError(f"the server failed: {type(error).__name__}: {error}"))


def _key(request: Request) -> str:
    key = request.headers.get(KEY_HEADER, "")
    if not 16 <= len(key) <= 100:
        raise ValueError(f"a write needs a key of its own, in the header {KEY_HEADER}")
    return key


def _folder(url: str) -> tempfile.TemporaryDirectory[str]:
    """Where files wait on their way in and out: beside the store, on a disk that has room for them."""
    file = file_of(url)
    if file is None:
        return tempfile.TemporaryDirectory(prefix="hpo-")
    folder = files_folder(file)
    folder.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".passing-", dir=folder)
