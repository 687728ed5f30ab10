"""Download over HTTPS, and resume interrupted downloads. Only this file imports urllib3.

Range requests follow RFC 9110, section 14. Proxies come from the same variables as for curl and pip. Certificates are
checked against the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR, as OpenSSL does.
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
"""Attempts in a row that bring no further byte."""
_REDIRECTS = 5
_STALL_SECONDS = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_CHUNK = 1 << 18
_STATUS_MISSING = (404, 410)
_STATUS_RETRY = (408, 425, 429, 500, 502, 503, 504)
_PROGRESS_SECONDS = 0.25

Progress = Callable[[int, int | None], None]


class NotFound(LabError):
    """The server has no such file."""


def fetch(
    url: str, target: Path, deadline: Deadline, *, limit: int, progress: Progress | None = None, pause: float = 1.0
) -> bool:
    """Download `url` to the file `target`. Return whether this resumed an earlier, interrupted call.

    `pause` is the wait after a failure in seconds; each further failure doubles it. Raise LabError when it does not
    succeed. The content of `target` is untrusted: verify it before use.
    """
    paths.make_folder(target.parent)
    resumed_at = _resume_point(target, url)[0]
    failures, size = 0, resumed_at
    while True:
        try:
            _attempt(url, target, deadline, limit, progress)
            return resumed_at > 0
        except _Interrupted as broken:
            now = target.stat().st_size if target.exists() else 0
            failures, size = (0 if now > size else failures + 1), now
            if failures >= _ATTEMPTS or deadline.passed:
                raise LabError(
                    f"{url}: {broken}", "the downloaded part is kept: the next attempt resumes there"
                ) from None
            time.sleep(min(pause * 2**failures, deadline.left))


def read(url: str, deadline: Deadline, *, limit: int, pause: float = 1.0) -> bytes:
    """Download a small file and return its content. Raise LabError if it has more than `limit` bytes."""
    for attempt in range(_ATTEMPTS):
        try:
            with _opened(url, {}, deadline) as response:
                content = bytearray()
                for chunk in _chunks(response):
                    content += chunk
                    if len(content) > limit:
                        raise LabError(f"{url}: download exceeds the limit of {limit} bytes")
                return bytes(content)
        except _Interrupted as broken:
            if attempt + 1 == _ATTEMPTS or deadline.passed:
                raise LabError(
                    f"{url}: {broken}", "check that the server is reachable; https_proxy and KMLAB_MIRROR are used"
                ) from None
            time.sleep(min(pause * 2**attempt, deadline.left))
    raise AssertionError


class _Interrupted(Exception):
    """A failure after which another attempt may succeed."""


def _attempt(url: str, target: Path, deadline: Deadline, limit: int, progress: Progress | None) -> None:
    have, validator = _resume_point(target, url)
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with _opened(url, headers, deadline) as response:
        start, total = 0, _number(response.headers.get("Content-Length"))
        if response.status == 206:
            start, total = _range(response.headers.get("Content-Range", ""))
            if not have or start != have:
                _record(target).unlink(missing_ok=True)
                raise _Interrupted("the server sent another range than requested")
        elif response.status == 416:
            if _range(response.headers.get("Content-Range", ""))[1] == have:
                return
            _record(target).unlink(missing_ok=True)
            raise _Interrupted("the server's file is shorter than the part that was downloaded before")
        if total is not None and total > limit:
            raise LabError(f"{url}: {total} bytes exceed the limit of {limit} bytes")
        if not start:
            target.write_bytes(b"")
        etag = response.headers.get("ETag", "")
        # A weak validator does not guarantee identical bytes (RFC 9110, section 8.8.1).
        strong = etag if etag.startswith('"') else ""
        paths.write_json(_record(target), {"url": url, "validator": strong})
        done, reported_at = start, 0.0
        with target.open("ab") as file:
            for chunk in _chunks(response):
                if deadline.passed:
                    raise LabError(
                        f"{url}: not complete within {deadline.seconds:.0f} s", "the next attempt resumes from here"
                    )
                if done + len(chunk) > limit:
                    raise LabError(f"{url}: download exceeds the limit of {limit} bytes")
                file.write(chunk)
                done += len(chunk)
                if progress and time.monotonic() - reported_at > _PROGRESS_SECONDS:
                    reported_at = time.monotonic()
                    progress(done, total)
        if total is not None and done != total:
            raise _Interrupted(f"truncated: {done} of {total} bytes")


def _resume_point(target: Path, url: str) -> tuple[int, str]:
    """Return how many bytes of `url` are in `target`, and the ETag that identifies the same file on the server."""
    record = paths.read_json(_record(target))
    validator = str(record.get("validator", "")) if isinstance(record, dict) and record.get("url") == url else ""
    return (target.stat().st_size if validator and target.exists() else 0), validator


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _range(text: str) -> tuple[int, int | None]:
    """Parse a Content-Range: `bytes 100-999/1000` gives 100 and 1000."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    start = _number(span.partition("-")[0])
    return (-1 if unit != "bytes" or start is None else start), _number(total)


@contextlib.contextmanager
def _opened(url: str, headers: dict[str, str], deadline: Deadline) -> Iterator[urllib3.BaseHTTPResponse]:
    """Send a GET request, follow redirects, and yield the response with its body unread."""
    import urllib3
    from urllib3.exceptions import HTTPError

    place = url
    try:
        for _ in range(_REDIRECTS + 1):
            with _pool(place) as pool:
                timeout = min(_STALL_SECONDS, deadline.left) or 0.1
                response = pool.request(
                    "GET",
                    place,
                    headers={"User-Agent": f"kmlab/{__version__}", "Accept-Encoding": "identity", **headers},
                    timeout=urllib3.Timeout(connect=timeout, read=timeout),
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
    target = urljoin(place, location)
    if urlsplit(target).scheme != "https" and not (urlsplit(place).scheme == urlsplit(target).scheme == "http"):
        raise LabError(f"{place}: redirected to {printable(target, 200)}, which is not https")
    return target


def _check_status(url: str, status: int) -> None:
    if status in (200, 206, 416):
        return
    if status in _STATUS_MISSING:
        raise NotFound(f"{url}: not found ({status})")
    if status in _STATUS_RETRY:
        raise _Interrupted(f"the server answered with {status}")
    raise LabError(f"{url}: the server answered with {status}")


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK):
        yield chunk


def _explained(url: str, error: Exception) -> Exception:
    cause: BaseException | None = error
    while cause is not None:
        for nested in (cause, *cause.args):
            if isinstance(nested, ssl.SSLCertVerificationError):
                cause = nested
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LabError(
                f"{url}: the server's certificate is not trusted: {printable(cause.verify_message, 200)}",
                "to trust another certificate authority, set SSL_CERT_FILE=FILE.pem",
            )
        cause = cause.__cause__ or cause.__context__
    return _Interrupted(printable(str(error), 300))


def _pool(url: str) -> urllib3.PoolManager:
    """Return a pool for direct connections, or for the proxy in the environment."""
    import urllib3

    trusted = ssl.create_default_context()
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass_environment(parts.netloc):  # type: ignore[attr-defined]
        return urllib3.PoolManager(ssl_context=trusted)
    address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if address.scheme not in ("http", "https"):
        raise LabError(f"kmlab cannot use the proxy {printable(proxy, 200)}", "use an http:// or https:// proxy")
    login = f"{address.username or ''}:{address.password or ''}" if address.username or address.password else None
    return urllib3.ProxyManager(
        f"{address.scheme}://{address.hostname}:{address.port or 3128}",
        proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        ssl_context=trusted,
    )
