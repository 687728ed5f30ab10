"""Downloads over HTTPS, resumed where they broke off: the only code that imports urllib3.

Range requests follow RFC 9110, section 14, and proxies the variables that curl and pip know. Certificates are checked
against the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR, as OpenSSL does.
"""

from __future__ import annotations

import contextlib
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from kmlab import __version__
from kmlab.common import paths
from kmlab.common.errors import LabError
from kmlab.common.events import Deadline, printable

if TYPE_CHECKING:
    import urllib3

_ATTEMPTS = 4
"""In a row, without one byte more than before."""
_REDIRECTS = 5
_STALLED = 30.0
"""Seconds without a byte, after which a connection counts as broken."""
_CHUNK = 1 << 18
_GONE = (404, 410)
_LATER = (408, 425, 429, 500, 502, 503, 504)
_NEWS = 0.25

Progress = Callable[[int, int | None], None]


class NotThere(LabError):
    """The server has no such file."""


def fetch(
    url: str, target: Path, deadline: Deadline, *, limit: int, progress: Progress | None = None, pause: float = 1.0
) -> bool:
    """Bring `url` into the file `target`, going on where an earlier call broke off; whether it did so.

    `pause` is how long the server is left alone after a failure; each further one doubles it.
    What `target` holds may be anything a server sent: nothing of it may be used before it is verified.
    """
    paths.make_folder(target.parent)
    began = _have(target, url)[0]
    failures, size = 0, began
    while True:
        try:
            _attempt(url, target, deadline, limit, progress)
            return began > 0
        except _Broken as broken:
            now = target.stat().st_size if target.exists() else 0
            failures, size = (0 if now > size else failures + 1), now
            if failures >= _ATTEMPTS or deadline.passed:
                raise LabError(
                    f"{url}: {broken}", "what was downloaded is kept: the next try goes on where this one broke off"
                ) from None
            time.sleep(min(pause * 2**failures, deadline.left))


def read(url: str, deadline: Deadline, *, limit: int, pause: float = 1.0) -> bytes:
    """All of a small file."""
    for attempt in range(_ATTEMPTS):
        try:
            with _opened(url, {}, deadline) as response:
                content = bytearray()
                for chunk in _chunks(response):
                    content += chunk
                    if len(content) > limit:
                        raise LabError(f"{url}: more than {limit} bytes, which is too much for this file")
                return bytes(content)
        except _Broken as broken:
            if attempt + 1 == _ATTEMPTS or deadline.passed:
                raise LabError(
                    f"{url}: {broken}", "reachable from here? https_proxy, KMLAB_MIRROR are obeyed"
                ) from None
            time.sleep(min(pause * 2**attempt, deadline.left))
    raise AssertionError


class _Broken(Exception):
    """This time it did not work; another time it may."""


def _attempt(url: str, target: Path, deadline: Deadline, limit: int, progress: Progress | None) -> None:
    have, validator = _have(target, url)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with _opened(url, headers, deadline) as response:
        start, total = 0, _number(response.headers.get("Content-Length"))
        if response.status == 206:
            start, total = _range(response.headers.get("Content-Range", ""))
            if not have or start != have:
                _note(target).unlink(missing_ok=True)
                raise _Broken("the server answered with another part than was asked for")
        elif response.status == 416:
            if _range(response.headers.get("Content-Range", ""))[1] == have:
                return
            _note(target).unlink(missing_ok=True)
            raise _Broken("the server has less of it than was downloaded before")
        if total is not None and total > limit:
            raise LabError(f"{url}: {total} bytes, and at most {limit} are taken")
        if not start:
            target.write_bytes(b"")
        etag = response.headers.get("ETag", "")
        # A weak validator promises nothing of the bytes (RFC 9110, section 8.8.1).
        strong = etag if etag.startswith('"') else ""
        paths.write_json(_note(target), {"url": url, "validator": strong})
        done, told = start, 0.0
        with target.open("ab") as file:
            for chunk in _chunks(response):
                if deadline.passed:
                    raise LabError(
                        f"{url}: not all there within {deadline.seconds:.0f} s", "the next try goes on from here"
                    )
                if done + len(chunk) > limit:
                    raise LabError(f"{url}: more than the {limit} bytes that are taken at most")
                file.write(chunk)
                done += len(chunk)
                if progress and time.monotonic() - told > _NEWS:
                    told = time.monotonic()
                    progress(done, total)
        if total is not None and done != total:
            raise _Broken(f"cut short: {done} of {total} bytes")


def _have(target: Path, url: str) -> tuple[int, str]:
    """How much of `url` lies in `target`, and by what the server knows that it is still the same file."""
    known = paths.read_json(_note(target))
    validator = str(known.get("validator", "")) if isinstance(known, dict) and known.get("url") == url else ""
    return (target.stat().st_size if validator and target.exists() else 0), validator


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _range(text: str) -> tuple[int, int | None]:
    """`bytes 100-999/1000` → 100 and 1000."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    start = _number(span.partition("-")[0])
    return (-1 if unit != "bytes" or start is None else start), _number(total)


@contextlib.contextmanager
def _opened(url: str, headers: dict[str, str], deadline: Deadline) -> Iterator[urllib3.BaseHTTPResponse]:
    """The answer to a GET, redirects followed; its body is still to be read."""
    import urllib3
    from urllib3.exceptions import HTTPError

    place = url
    try:
        for _ in range(_REDIRECTS + 1):
            with _pool(place) as pool:
                patience = min(_STALLED, deadline.left) or 0.1
                response = pool.request(
                    "GET",
                    place,
                    headers={"User-Agent": f"kmlab/{__version__}", "Accept-Encoding": "identity", **headers},
                    timeout=urllib3.Timeout(connect=patience, read=patience),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                try:
                    if response.status in (301, 302, 303, 307, 308):
                        place = _next(place, response.headers.get("Location", ""))
                        continue
                    _check_status(url, response.status)
                    yield response
                    return
                finally:
                    response.close()
        raise LabError(f"{url}: redirected more than {_REDIRECTS} times")
    except HTTPError as error:
        raise _explained(url, error) from None


def _next(place: str, location: str) -> str:
    there = urljoin(place, location)
    if urlsplit(there).scheme != "https" and not (urlsplit(place).scheme == urlsplit(there).scheme == "http"):
        raise LabError(f"{place}: redirected to {printable(there, 200)}, which is not https")
    return there


def _check_status(url: str, status: int) -> None:
    if status in (200, 206, 416):
        return
    if status in _GONE:
        raise NotThere(f"{url}: not there ({status})")
    if status in _LATER:
        raise _Broken(f"the server answered with {status}")
    raise LabError(f"{url}: the server answered with {status}")


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


def _explained(url: str, error: Exception) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        for found in (cause, *cause.args):
            if isinstance(found, ssl.SSLCertVerificationError):
                cause = found
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LabError(
                f"{url}: the server's certificate is not trusted: {printable(cause.verify_message, 200)}",
                "with a certificate authority of your own: SSL_CERT_FILE=FILE.pem",
            )
        cause = cause.__cause__ or cause.__context__
    return _Broken(printable(str(error), 300))


def _pool(url: str) -> urllib3.PoolManager:
    """Straight to the server, or by the proxy that the environment names."""
    import urllib3

    trusted = ssl.create_default_context()
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass_environment(parts.netloc):  # type: ignore[attr-defined]
        return urllib3.PoolManager(ssl_context=trusted)
    address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if address.scheme not in ("http", "https"):
        raise LabError(
            f"the proxy {printable(proxy, 200)} is none that kmlab can use", "http:// and https:// proxies work"
        )
    login = f"{address.username or ''}:{address.password or ''}" if address.username or address.password else None
    return urllib3.ProxyManager(
        f"{address.scheme}://{address.hostname}:{address.port or 3128}",
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        ssl_context=trusted,
    )
