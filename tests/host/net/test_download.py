"""Test downloads from a real HTTPS server that interrupts, lies, redirects and stalls."""

from __future__ import annotations

import contextlib
import random
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kmlab.common.errors import LabError
from kmlab.common.events import Deadline
from kmlab.host.net import download
from tests.publisher import Authority, Request, Server

CONTENT = random.Random(1).randbytes(3_000_000)
BIG = 1 << 30


def fetch(server: Server, target: Path, *, path: str = "a/b.img", limit: int = BIG) -> bool:
    return download.fetch(f"{server.url}/{path}", target, Deadline(60), limit=limit, pause=0.01)


def breaking(times: int, after: int, *, content: bytes = CONTENT, etag: str | None = None) -> object:
    """An answer that breaks off `after` bytes, the first `times` times."""
    left = [times]

    def answer(request: Request) -> None:
        left[0] -= 1
        request.send_file(content, etag=etag, stop_after=after if left[0] >= 0 else None)

    return answer


def test_a_file_arrives_complete_and_reports_progress(server: Server, tmp_path: Path) -> None:
    server.files["a/b.img"] = CONTENT
    heard: list[tuple[int, int | None]] = []
    url, target = f"{server.url}/a/b.img", tmp_path / "x.part"
    assert not download.fetch(url, target, Deadline(60), limit=BIG, progress=lambda *at: heard.append(at))
    assert target.read_bytes() == CONTENT
    assert heard and all(total == len(CONTENT) and 0 < done <= len(CONTENT) for done, total in heard)


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.answers["a/b.img"] = breaking(2, 1_000_000)  # type: ignore[assignment]
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1000000-", "bytes=2000000-"]


def test_an_interrupted_call_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    left = [1]

    def broken_once(request: Request) -> None:
        left[0] -= 1
        request.send_file(CONTENT, stop_after=1_234_567 if left[0] == 0 else 0)

    server.answers["a/b.img"] = broken_once
    with pytest.raises(LabError) as caught:
        fetch(server, tmp_path / "x.part")
    assert caught.value.hint is not None and "resumes" in caught.value.hint
    assert (tmp_path / "x.part").stat().st_size == 1_234_567
    server.answers.clear()
    server.files["a/b.img"] = CONTENT
    assert fetch(server, tmp_path / "x.part")
    assert server.asked[-1][1] == "bytes=1234567-"
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_a_complete_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.files["a/b.img"] = CONTENT
    fetch(server, tmp_path / "x.part")
    fetch(server, tmp_path / "x.part")
    assert server.asked[-1][1] == f"bytes={len(CONTENT)}-"
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_is_fetched_from_its_beginning(server: Server, tmp_path: Path) -> None:
    old = CONTENT[::-1]
    left = [1]

    def changing(request: Request) -> None:
        left[0] -= 1
        request.send_file(old if left[0] == 0 else CONTENT, stop_after=500_000 if left[0] == 0 else None)

    server.answers["a/b.img"] = changing
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=500000-"]


def test_a_weak_validator_is_no_reason_to_resume(server: Server, tmp_path: Path) -> None:
    server.answers["a/b.img"] = breaking(1, 1_000_000, etag='W/"1"')  # type: ignore[assignment]
    fetch(server, tmp_path / "x.part")
    assert [asked for _, asked in server.asked] == [None, None]
    assert (tmp_path / "x.part").read_bytes() == CONTENT


def test_a_range_that_was_not_requested_is_not_written(server: Server, tmp_path: Path) -> None:
    left = [2]

    def lying(request: Request) -> None:
        left[0] -= 1
        if left[0] == 1:
            request.send_file(CONTENT, stop_after=1_000_000)
        elif left[0] == 0:
            span = f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}"
            request.send_status(206, {"Content-Range": span, "Content-Length": str(len(CONTENT) - 7)}, CONTENT[7:])
        else:
            request.send_file(CONTENT)

    server.answers["a/b.img"] = lying
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_temporary_server_error_is_retried(server: Server, tmp_path: Path, status: int) -> None:
    left = [2]

    def troubled(request: Request) -> None:
        left[0] -= 1
        request.send_status(status) if left[0] >= 0 else request.send_file(CONTENT)

    server.answers["a/b.img"] = troubled
    fetch(server, tmp_path / "x.part")
    assert len(server.asked) == 3


def test_a_missing_file_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(download.NotFound, match=r"/a/b\.img: not found \(404\)"):
        fetch(server, tmp_path / "x.part")
    assert len(server.asked) == 1


def test_a_forbidden_file_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    server.answers["a/b.img"] = lambda request: request.send_status(403)
    with pytest.raises(LabError, match="answered with 403"):
        fetch(server, tmp_path / "x.part")
    assert len(server.asked) == 1


def test_a_file_above_the_limit_is_refused_before_it_is_sent(server: Server, tmp_path: Path) -> None:
    server.files["a/b.img"] = CONTENT
    with pytest.raises(LabError, match="exceed the limit of 1000000"):
        fetch(server, tmp_path / "x.part", limit=1_000_000)
    assert not (tmp_path / "x.part").exists()


def test_a_file_above_the_limit_is_refused_even_without_a_content_length(server: Server, tmp_path: Path) -> None:
    def endless(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for _ in range(100):
            request.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    server.answers["a/b.img"] = endless
    with pytest.raises(LabError, match="exceeds the limit of 1000000 bytes"):
        fetch(server, tmp_path / "x.part", limit=1_000_000)
    assert (tmp_path / "x.part").stat().st_size <= 1_000_000
    with pytest.raises(LabError, match="exceeds the limit"):
        download.read(f"{server.url}/a/b.img", Deadline(60), limit=1_000_000)


def test_a_redirect_to_https_is_followed_and_one_to_http_is_not(
    server: Server, authority: Authority, tmp_path: Path
) -> None:
    plain = Server(None)
    try:
        plain.files["c"] = server.files["c"] = CONTENT
        server.answers["a/b.img"] = lambda request: request.send_status(302, {"Location": "/c"})
        fetch(server, tmp_path / "x.part")
        assert (tmp_path / "x.part").read_bytes() == CONTENT
        server.answers["a/b.img"] = lambda request: request.send_status(302, {"Location": f"{plain.url}/c"})
        with pytest.raises(LabError, match="which is not https"):
            fetch(server, tmp_path / "y.part")
        server.answers["a/b.img"] = lambda request: request.send_status(302, {"Location": "file:///etc/passwd"})
        with pytest.raises(LabError, match="which is not https"):
            fetch(server, tmp_path / "y.part")
        assert plain.asked == [] and not (tmp_path / "y.part").exists()
    finally:
        plain.close()


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server.answers["a/b.img"] = lambda request: request.send_status(307, {"Location": "/a/b.img"})
    with pytest.raises(LabError, match="redirected more than"):
        fetch(server, tmp_path / "x.part")


def test_a_certificate_of_an_unknown_authority_is_refused_with_the_remedy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a/b.img"] = CONTENT
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "another").certificate))
    with pytest.raises(LabError, match="certificate is not trusted") as caught:
        fetch(server, tmp_path / "x.part")
    assert caught.value.hint is not None and "SSL_CERT_FILE" in caught.value.hint
    assert server.asked == []


@pytest.mark.parametrize(("host", "days"), [("example.invalid", 2), ("127.0.0.1", -1)])
def test_a_certificate_of_another_host_or_of_yesterday_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, days: int
) -> None:
    wrong = Authority(tmp_path / "wrong", host=host, valid_days=days)
    monkeypatch.setenv("SSL_CERT_FILE", str(wrong.certificate))
    other = Server(wrong.context())
    try:
        with pytest.raises(LabError, match="certificate is not trusted"):
            fetch(other, tmp_path / "x.part")
        assert other.asked == []
    finally:
        other.close()


def test_an_unreachable_server_is_reported_with_its_address(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.close()
    with pytest.raises(LabError, match=url):
        download.fetch(f"{url}/a", tmp_path / "x.part", Deadline(60), limit=BIG, pause=0.01)


class Proxy(BaseHTTPRequestHandler):
    """A proxy that joins two sockets (RFC 9110, section 9.3.6)."""

    seen: list[tuple[str, str | None]]

    def do_CONNECT(self) -> None:
        type(self).seen.append((self.path, self.headers.get("Proxy-Authorization")))
        import socket

        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()

            def pump(source: socket.socket, target: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while chunk := source.recv(65536):
                        target.sendall(chunk)

            back = threading.Thread(target=pump, args=(there, self.connection), daemon=True)
            back.start()
            pump(self.connection, there)

    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    class Serving(socketserver.ThreadingMixIn, HTTPServer):
        daemon_threads = True

    Proxy.seen = []
    made = Serving(("127.0.0.1", 0), Proxy)
    threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{made.server_address[1]}", Proxy.seen
    made.shutdown()
    made.server_close()


def test_the_proxy_that_the_environment_names_is_used(
    server: Server, tmp_path: Path, proxy: tuple[str, list[tuple[str, str | None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a/b.img"] = CONTENT
    address, seen = proxy
    monkeypatch.setenv("https_proxy", f"http://me:secret@{address}")
    fetch(server, tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes() == CONTENT
    assert seen == [(server.url.removeprefix("https://"), "Basic bWU6c2VjcmV0")]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch(server, tmp_path / "y.part")
    assert len(seen) == 1


def test_an_unsupported_proxy_is_reported(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(LabError, match="proxy socks5://"):
        fetch(server, tmp_path / "x.part")
