"""Explain why this host's own kernel would refuse a module, and which commands mend that. Nothing is loaded."""

from __future__ import annotations

import base64
import dataclasses
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.x509 import Certificate

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.host import key_files
from kmlab.host.key_files import KeyPaths
from kmlab.host.running_kernel import RunningKernel
from kmlab.kernel.module.modinfo import parse_modinfo
from kmlab.kernel.signing.guest_keyring import certificates_in, parse_keyring
from kmlab.kernel.signing.load_check import Description, Explanation, GuestKeyring, describe, explain
from kmlab.kernel.signing.signature import Verdict
from kmlab.kernel.symbols.elf import decompress, find_compression
from kmlab.secure_boot.sign_files import read_module

HOST = "this host"
_HEADERS = {
    "apt-get": "sudo apt-get install linux-headers-{release}",
    "dnf": "sudo dnf install kernel-devel-{release}",
    "zypper": "sudo zypper install kernel-default-devel",
    "pacman": "sudo pacman -S linux-headers",
}
"""How each distribution's tool installs the headers of the running kernel."""


@dataclass(frozen=True, slots=True)
class HostState:
    """What this host's kernel goes by."""

    keyring: GuestKeyring
    firmware_keys: tuple[Certificate, ...]
    """The certificates of the firmware's db. Debian's, Ubuntu's and Fedora's kernels take modules signed by them."""
    vermagic: str | None
    """The vermagic of a module of this kernel; None if there is none to look into."""
    pending: bool
    headers: bool
    keys_visible: bool
    """Whether /proc/keys showed the kernel's keys: usually only to root."""


@dataclass(frozen=True, slots=True)
class HostExplanation:
    """A file, whether this host would load it, and the commands that mend what is wrong."""

    file: Path
    description: Description
    verdict: Explanation
    commands: tuple[str, ...]


def host_state(kernel: RunningKernel) -> HostState:
    """Return what the host's files mean."""
    visible = "asymmetri " in kernel.keys or ".builtin_trusted_keys" in kernel.keys
    answer = (
        f"release={kernel.release}\narch={kernel.arch}\nsig_enforce={kernel.sig_enforce or 'N'}\n"
        f"lockdown={kernel.lockdown}\nsecure_boot={int(kernel.secure_boot)}\n"
        f"mok={base64.b64encode(kernel.mok).decode()}\n{kernel.keys}"
    )
    keyring = dataclasses.replace(parse_keyring(HOST, answer), what="machine")
    if not visible:
        keyring = dataclasses.replace(keyring, certificates=tuple(certificates_in(kernel.mok)))
    firmware_keys = tuple(certificates_in(kernel.database))
    return HostState(keyring, firmware_keys, _vermagic(kernel.module), kernel.pending, kernel.headers, visible)


def explain_on_host(
    path: Path, state: HostState, own: KeyPaths | None, certificates: Sequence[Certificate] = ()
) -> HostExplanation:
    """Explain whether this host would load a module. `own` is where the key for its folder is, or would be made."""
    content, name = read_module(path), printable(str(path))
    known = [*certificates, *state.keyring.certificates, *state.firmware_keys, *_certificate_of(own)]
    about = describe(content, known, name=name)
    verdict = _firmware_verdict(content, state, name) or explain(content, state.keyring, name=name)
    verdict = _vermagic_verdict(about, state) or verdict
    commands = () if verdict.loads else tuple(_commands(path, about, verdict, state, own))
    return HostExplanation(path, about, verdict, commands)


def state_lines(state: HostState) -> list[str]:
    """Return the host's state as lines for people."""
    keyring = state.keyring
    on = {True: "on", False: "off"}
    names = ", ".join(f"'{each}'" for each in certificate_names(keyring.certificates)) or "none"
    lines = [
        f"{HOST}: kernel {keyring.release} ({keyring.arch}), Secure Boot {on[keyring.secure_boot]}, "
        f"lockdown {keyring.lockdown}, unsigned modules {'refused' if keyring.enforces else 'allowed'}",
        f"  keys that the owner enrolled (MokListRT): {names}",
        f"  keys of the firmware (db): {len(state.firmware_keys)}",
    ]
    if state.vermagic:
        lines.append(f"  vermagic: {state.vermagic}")
    if not state.keys_visible:
        lines.append("  only root can see which keys the kernel loaded (.machine, .platform); the enrolled ones count")
    if state.pending:
        lines.append("  a key waits to be enrolled: reboot, and choose Enroll MOK on the blue screen")
    return lines


def certificate_names(certificates: Sequence[Certificate]) -> list[str]:
    """Return the kernel's names of certificates."""
    from kmlab.kernel.signing.key_ids import kernel_name

    return [kernel_name(certificate) for certificate in certificates]


def _vermagic(module: bytes) -> str | None:
    try:
        plain = decompress(module) if find_compression(module) else module
        return parse_modinfo(plain, "a module of this kernel").vermagic if plain else None
    except ConfigError:
        return None


def _certificate_of(pair: KeyPaths | None) -> list[Certificate]:
    if pair is None or not os.path.exists(pair.certificate):
        return []
    return [key_files.load_certificate(pair.certificate)]


def _firmware_verdict(content: bytes, state: HostState, name: str) -> Explanation | None:
    """Return the verdict for a module that is signed with one of the firmware's keys (.platform)."""
    if not state.keyring.secure_boot:
        return None
    trusted = dataclasses.replace(state.keyring, certificates=state.firmware_keys)
    verdict = explain(content, trusted, name=name)
    if verdict.description.verdict is not Verdict.VALID or verdict.loads is False:
        return None
    why = "it is signed with a key of the firmware (.platform), which distributions' kernels accept and others do not"
    return dataclasses.replace(verdict, loads=None, why=why, remedy="")


def _vermagic_verdict(about: Description, state: HostState) -> Explanation | None:
    """Return the verdict for a module of the right release that was built with other options."""
    module, ours = about.module, state.vermagic
    if module is None or not ours or not module.vermagic or module.release != state.keyring.release:
        return None
    if module.vermagic.split() == ours.split():
        return None
    why = f"it was built with other options: its vermagic is '{module.vermagic}', the kernel's is '{ours}'"
    return Explanation(HOST, about, False, why, "build it against this kernel's own headers")


def _commands(
    path: Path, about: Description, verdict: Explanation, state: HostState, own: KeyPaths | None
) -> list[str]:
    """Return the commands, in their order. What cannot be told for sure has none."""
    file, module, release = shlex.quote(str(path)), about.module, state.keyring.release
    wrong_build = module is not None and (
        module.machine != state.keyring.arch
        or not module.has_symbols
        or (module.release is not None and module.release != release)
        or "vermagic" in verdict.why
    )
    commands = []
    if wrong_build:
        if not state.headers:
            commands += _install_headers(release)
        folder = shlex.quote(str(path.parent.resolve()))
        commands.append(f"make -C /lib/modules/{release}/build M={folder} clean modules")
    if state.keyring.enforces and (wrong_build or verdict.loads is False):
        commands += _signing_commands(file, about, state, own, again=wrong_build)
    return commands


def _install_headers(release: str) -> list[str]:
    return next(([line.format(release=release)] for tool, line in _HEADERS.items() if shutil.which(tool)), [])


def _signing_commands(
    file: str, about: Description, state: HostState, own: KeyPaths | None, *, again: bool
) -> list[str]:
    enrolled = {certificate.serial_number for certificate in state.keyring.certificates}
    for pair in key_files.find_system_pairs():
        if _readable_serial(pair) in enrolled:
            sudo = "" if pair.readable else "sudo "
            key, certificate = shlex.quote(str(pair.key)), shlex.quote(str(pair.certificate))
            return [f"{sudo}kmlab sign {file} --key {key} --cert {certificate}"]
    if own is None:
        return [f"kmlab sign {file}"]
    certificate = shlex.quote(str(own.certificate))
    known = _readable_serial(own)
    signed_by_own = about.certificate is not None and about.certificate.serial_number == known
    commands = [] if signed_by_own and about.verdict is Verdict.VALID and not again else [f"kmlab sign {file}"]
    if known not in enrolled:
        commands += [f"sudo mokutil --import {certificate}", "sudo reboot"]
    return commands


def _readable_serial(pair: KeyPaths) -> int | None:
    try:
        return key_files.load_certificate(pair.certificate).serial_number
    except (ConfigError, OSError):
        return None
