"""A publisher of images on this host: an HTTPS server with an authority of its own, and a signing key of its own.

It can be made to misbehave, file by file, in the ways that networks, mirrors and attackers do.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Answer = Callable[["Request"], None]


@dataclass
class Authority:
    """A certificate authority, and a server's certificate that it signed."""

    folder: Path
    host: str = "127.0.0.1"
    valid_days: int = 2

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc)
        key, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kmlab test authority")])
        begin, end = now - datetime.timedelta(days=3), now + datetime.timedelta(days=self.valid_days)

        def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
            made = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
            return made.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)

        own = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        root = (
            builder(name, key.public_key())
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(own, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        called: x509.GeneralName
        try:
            called = x509.IPAddress(ipaddress.ip_address(self.host))
        except ValueError:
            called = x509.DNSName(self.host)
        leaf = (
            builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.host)]), server.public_key())
            .add_extension(x509.SubjectAlternativeName([called]), critical=False)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.certificate.write_bytes(root.public_bytes(pem))
        secret = server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "server.pem").write_bytes(leaf.public_bytes(pem) + secret)

    @property
    def certificate(self) -> Path:
        """What SSL_CERT_FILE has to name."""
        return self.folder / "ca.pem"

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.folder / "server.pem")
        return made


class Signer:
    """A GnuPG key, in a home of its own."""

    def __init__(self, who: str = "kmlab test publisher <test@example.invalid>", algorithm: str = "ed25519") -> None:
        # A short path: gpg-agent's socket lies in it.
        self.home = Path(tempfile.mkdtemp(prefix="kmg", dir="/tmp"))
        self.home.chmod(0o700)
        self.gpg(*_at("20250101"), "--passphrase", "", "--quick-generate-key", who, algorithm, "sign", "never")
        listed = self.gpg("--list-keys", "--with-colons").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))

    def gpg(self, *words: str, data: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--pinentry-mode", "loopback", *words]
        done = subprocess.run(argv, input=data, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def public_key(self) -> bytes:
        return self.gpg("--export", self.fingerprint)

    def sign(self, data: bytes, *, day: str | None = None, options: tuple[str, ...] = ()) -> bytes:
        """A detached signature, as if it were made on `day` (20260131)."""
        return self.gpg(*_at(day), *options, "--armor", "--detach-sign", data=data)

    def clearsign(self, data: bytes) -> bytes:
        return self.gpg("--clearsign", data=data)

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


def _at(day: str | None) -> tuple[str, ...]:
    return ("--faked-system-time", f"{day}T000000!") if day else ()


class Request(BaseHTTPRequestHandler):
    """One request; files are served with ETag and ranges, as the publishers' servers do."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.server.asked.append((path, self.headers.get("Range")))
        answer = self.server.answers.get(path)
        if answer is not None:
            answer(self)
        elif path in self.server.files:
            self.send_file(self.server.files[path])
        else:
            self.send_status(404)

    def send_status(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, content: bytes, *, etag: str | None = None, stop_after: int | None = None) -> None:
        """The file, or the rest of it that was asked for; `stop_after` bytes the connection breaks."""
        tag = etag or f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_status(416, {"Content-Range": f"bytes */{len(content)}"})
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = content[start:]
        self.wfile.write(body if stop_after is None else body[:stop_after])
        if stop_after is not None and stop_after < len(body):
            self.close_connection = True

    def log_message(self, format: str, *words: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves `files`, and whatever `answers` say instead."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.secure = context is not None
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


@dataclass
class Publisher:
    """Releases of one image, laid out as Canonical's: a folder each, with the sums and their signature."""

    server: Server
    signer: Signer
    name: str = "testix"
    release: str = "24.04"
    folder: str = "releases/testix"
    served: dict[str, bytes] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.name}-{self.release}-server-cloudimg-amd64.img"

    def publish(self, serial: str, image: bytes, *, day: str | None = None, newest: bool = True) -> None:
        """A release; by default the newest."""
        other = b"0" * 64 + b" *another-file.img\n"
        sums = hashlib.sha256(image).hexdigest().encode() + f" *{self.file}\n".encode() + other
        signature = self.signer.sign(sums, day=day or serial[:8])
        for folder in (f"{self.folder}/release-{serial}", *([f"{self.folder}/release"] if newest else [])):
            files = {self.file: image, "SHA256SUMS": sums, "SHA256SUMS.gpg": signature}
            self.server.files.update({f"{folder}/{name}": content for name, content in files.items()})

    def entry(
        self, *, pin: str = "null", signed: bool = True, server: str | None = None, family: str = "debian"
    ) -> str:
        """images/NAME.yaml."""
        key = f"  signature: SHA256SUMS.gpg\n  key: {self.name}\n" if signed else ""
        arch = os.uname().machine
        return (
            f"family: {family}\nrelease: '{self.release}'\npublisher:\n  server: {server or self.server.url}\n"
            f"  newest: {self.folder}/release\n  dated: {self.folder}/release-{{serial}}\n  sums: SHA256SUMS\n{key}"
            f"architectures:\n  {arch}:\n    download:\n      file: {self.file}\n      pin: {pin}\n"
        )

    def catalogue(self, folder: Path, **about: object) -> Path:
        """An images/ folder beside a lab.yaml with this one image and its key."""
        keys = folder / "images" / "keys"
        keys.mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{self.name}.yaml").write_text(self.entry(**about))  # type: ignore[arg-type]
        (keys / f"{self.name}.gpg").write_bytes(self.signer.public_key())
        text = f"fingerprint: {self.signer.fingerprint}\norigin: made for a test\n"
        (keys / f"{self.name}.yaml").write_text(text)
        return folder


def disk_image(folder: Path, size: str = "8M", *options: str) -> bytes:
    """A small qcow2 file, made by qemu-img."""
    made = folder / f"made-{size}.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(made), size]
    subprocess.run(argv, check=True, timeout=60)
    content = made.read_bytes()
    made.unlink()
    return content


def described(path: Path) -> dict[str, object]:
    """A JSON file."""
    return dict(json.loads(path.read_text()))
