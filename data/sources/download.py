"""Files from elsewhere: HTTP by the standard library, S3 and Google Storage by fsspec; bounded, and tried again.

No address, wherever it comes from, and no redirect leads to a file of this machine: nothing here opens one. Nor does
a redirect lead from a public address to a private one, where this machine or a cloud's own servers would answer.
"""

import contextlib
import functools
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from core.errors import UserError
from core.progress import say
from data.packages import package

HTTP = ("http", "https")
STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "memory": "fsspec"}  # by scheme, what fsspec needs for it
TAGS = ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created")  # of a store, the first it has
MAX_FILE_BYTES = 64 << 30
READ_BYTES = 1 << 20
ATTEMPTS = 8  # with waits of two minutes in all
SILENCE = 60.0  # seconds
SLOWEST = 2000  # bytes a second, over so many seconds
NOT_NOW = (408, 425, 429)  # of the answers 400 to 499, those that may be others later
Result = TypeVar("Result")


class Remote(NamedTuple):
    """A file, and what tells of it whether it has changed."""

    url: str
    size: int | None  # where the server says it
    tag: str


def scheme(url: str) -> str:
    """In lower case; empty where there is none."""
    found, separator, _ = url.partition("://")
    return found.lower() if separator else ""


def describe(url: str) -> Remote:
    """What there is to know of a file without its content."""
    return _tried(url, lambda: _describe_http(url) if scheme(url) in HTTP else _describe_stored(url))


def matches(pattern: str) -> list[Remote]:
    """The files of a store whose names fit a pattern with `*`, in order."""
    if scheme(pattern) in HTTP:
        raise UserError(
            f"{pattern}: HTTP has no lists of files; name one file, or a list of paths that ends in .paths"
        )
    return sorted(_tried(pattern, lambda: _list(pattern)))


def fetch(url: str, path: Path, most: int = MAX_FILE_BYTES) -> None:
    """Copies a file here, whole; one attempt goes on where the last has ended, if the file is still the same."""
    remote = describe(url)
    with path.open("wb", buffering=0) as file:
        _tried(url, lambda: _copy(remote, file, most))


def _tried(url: str, action: Callable[[], Result]) -> Result:
    """The result of an action, which may fail a few times for reasons that pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            said = str(error).strip() or type(error).__name__
            if _is_final(error) or attempt == ATTEMPTS:
                raise UserError(f"{url} cannot be read ({said})") from error
            seconds = 2.0 ** (attempt - 1)
            say(f"{url}: {said}; tried again in {seconds:.0f} s")
            time.sleep(seconds)
    raise AssertionError


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in NOT_NOW
    return isinstance(error, FileNotFoundError | PermissionError | http.client.InvalidURL)


def _copy(remote: Remote, file: IO[bytes], most: int) -> None:
    """Writes what is missing of a file that has been begun."""
    if remote.size is not None and remote.size > most:
        raise UserError(f"{remote.url} has {remote.size:,} bytes, more than the {most:,} that are read")
    if remote.size == file.tell() > 0:
        return  # the last attempt failed after the end
    with _open(remote, file.tell()) as (start, read):
        file.seek(start)
        file.truncate()
        since, before = time.monotonic(), start
        while data := read(READ_BYTES):
            _write(file, data)
            if file.tell() > most:
                raise UserError(f"{remote.url} has more than the {most:,} bytes that are read")
            if time.monotonic() - since > SILENCE:
                if file.tell() - before < SLOWEST * SILENCE:
                    raise TimeoutError(f"less than {SLOWEST:,} bytes a second")
                since, before = time.monotonic(), file.tell()
    if remote.size is not None and file.tell() != remote.size:
        raise ConnectionError(f"ended after {file.tell():,} of {remote.size:,} bytes")


def _write(file: IO[bytes], data: bytes) -> None:
    """All of it; where there is no room, another attempt would find none either."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be written ({error.strerror}); TMPDIR names another place for files that are fetched"
        ) from error


@contextlib.contextmanager
def _open(remote: Remote, start: int) -> Iterator[tuple[int, Callable[[int], bytes]]]:
    """A function that reads on from a place: the one that is asked for, or else the beginning."""
    if scheme(remote.url) not in HTTP:
        files, path = _store(remote.url)
        with _as_os_errors(), files.open(path, "rb") as file:
            file.seek(start)
            yield start, file.read
        return
    goes_on = {"Range": f"bytes={start}-", "If-Range": remote.tag} if start and remote.tag else {}
    with _request(remote.url, goes_on) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError("the server sends another part than was asked for")
        yield start, response.read1


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(self, request: urllib.request.Request, *others: Any) -> urllib.request.Request | None:
        """As the standard library has it, but to HTTP alone, and from HTTPS to nothing else."""
        following = super().redirect_request(request, *others)
        if following is not None and following.type not in ("https", request.type):
            raise PermissionError(f"redirected to {following.full_url}, which is not followed")
        return following


class _Way:
    """Of one request through its redirects: once at a public address, it leads to no other kind.

    What the config names may lie in a private network, so the first address may be of any kind.
    """

    def __init__(self):
        self.public = ""  # the last such place

    def require_open(self, url: str, address: str) -> None:
        """Refuses the address that a URL stands for."""
        if self.public and not _is_public(address):
            raise UserError(
                f"{self.public} redirects to {url} at {address}, which is no public address, and is not followed; if "
                "this is meant, name that address itself"
            )

    def reach(self, url: str, address: str) -> None:
        """Remembers it."""
        self.public = url if _is_public(address) else self.public

    def connect(self, url: str, place: tuple[str, int], *options: Any) -> socket.socket:
        """`socket.create_connection`, to the very address that was looked at: a name may have another next time."""
        failed = OSError(f"{place[0]} has no address")
        for *_, (address, port, *_) in socket.getaddrinfo(*place, type=socket.SOCK_STREAM):
            self.require_open(url, address)
            try:
                connected = socket.create_connection((address, port), *options)
            except OSError as error:
                failed = error
            else:
                self.reach(url, address)
                return connected
        raise failed


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return True  # a name, which only a proxy looks up


class _Guarded:
    """A handler of requests whose connections keep to a way."""

    def __init__(self, way: _Way):
        super().__init__()
        self.way = way

    def do_open(self, kind: Callable[..., http.client.HTTPConnection], request: Any, **options: Any) -> Any:
        """As the standard library has it; a proxy may lie anywhere, and what is asked of it is all that is known."""
        url = request.full_url
        asked = urllib.parse.urlsplit(url)

        def make(host: str, **more: Any) -> http.client.HTTPConnection:
            connection = kind(host, **more)
            connection._create_connection = functools.partial(self.way.connect, url)
            return connection

        if asked.netloc == request.host:
            return super().do_open(make, request, **options)
        self.way.require_open(url, asked.hostname or "")
        self.way.reach(url, asked.hostname or "")
        return super().do_open(kind, request, **options)


class _GuardedHTTP(_Guarded, urllib.request.HTTPHandler):
    pass


class _GuardedHTTPS(_Guarded, urllib.request.HTTPSHandler):
    pass


def _opener() -> urllib.request.OpenerDirector:
    """One that speaks HTTP only: the usual one also reads FTP and files."""
    opener, way = urllib.request.OpenerDirector(), _Way()
    for handler in (
        urllib.request.ProxyHandler(),
        _GuardedHTTP(way),
        _GuardedHTTPS(way),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _request(url: str, headers: dict[str, str], method: str = "GET") -> http.client.HTTPResponse:
    headers = {"User-Agent": "Quintet", "Accept-Encoding": "identity", **headers}
    url = urllib.parse.quote(url, safe="/:?#[]@!$&'()*+,;=%~")
    return _opener().open(urllib.request.Request(url, headers=headers, method=method), timeout=SILENCE)


def _describe_http(url: str) -> Remote:
    try:
        response = _request(url, {}, "HEAD")
    except urllib.error.HTTPError as error:
        if error.code not in (http.client.METHOD_NOT_ALLOWED, http.client.NOT_IMPLEMENTED):
            raise
        response = _request(url, {})
    with response:
        size, tag = response.headers.get("Content-Length", ""), response.headers.get("ETag", "")
        # A weak tag is equal for what only means the same.
        tag = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        return Remote(url, int(size) if size.isdigit() else None, tag)


def _describe_stored(url: str) -> Remote:
    files, path = _store(url)
    with _as_os_errors():
        return _remote(url, files.info(path))


def _list(pattern: str) -> list[Remote]:
    files, path = _store(pattern)
    with _as_os_errors():
        found = files.glob(path, detail=True)
    urls = {f"{scheme(pattern)}://{name.lstrip('/')}": info for name, info in found.items()}
    return [_remote(url, info) for url, info in urls.items() if info["type"] == "file"]


def _remote(url: str, info: dict[str, Any]) -> Remote:
    return Remote(url, info["size"], next((str(info[name]) for name in TAGS if info.get(name)), ""))


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path there. Its chains of file systems (`a::b`) are not for here."""
    name = scheme(url)
    package(STORES[name], extra="remote")
    files = package("fsspec", extra="remote").filesystem(name, use_listings_cache=False)
    return files, url.partition("://")[2]


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Libraries of stores raise what they like."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(str(error)) from error
