"""Whether a guest's kernel would take a module file, and why not: from the file and the recorded keys.

Follows the checks of kernel/module/signing.c (module_sig_check) and kernel/module/main.c (load_module) and,
for which keys count, security/integrity/platform_certs/load_uefi.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.x509 import Certificate

from kmlab.kernel.module.modinfo import ModInfo, parse_modinfo
from kmlab.kernel.signing.key_ids import kernel_name
from kmlab.kernel.signing.signature import MAGIC, Signature, Verdict, names, read_signature, verify
from kmlab.kernel.symbols.elf import decompress, find_compression

_SIGN = "kmlab sign FILE.ko"
_TAINTS = "; it taints the kernel (E)"


@dataclass(frozen=True, slots=True)
class GuestKeyring:
    """What a guest's kernel goes by when it is asked to load a module."""

    guest: str
    release: str
    """`uname -r`; empty if not yet known."""
    arch: str
    """`uname -m`; empty if not yet known."""
    secure_boot: bool
    sig_enforce: bool | None = None
    """/sys/module/module/parameters/sig_enforce; None, if nobody looked: then as Secure Boot."""
    lockdown: str = "none"
    """The chosen word of /sys/kernel/security/lockdown."""
    certificates: tuple[Certificate, ...] = ()
    """The enrolled ones (MokList)."""
    kernel_keys: tuple[str, ...] = ()
    """The names of the kernel's own keys, where known, as in "Loaded X.509 cert 'NAME: KEYID'"."""
    what: str = "guest"
    """What the sentences call it: a guest, or a machine."""

    @property
    def enforces(self) -> bool:
        """Whether a module without a good signature is refused."""
        asked = self.secure_boot if self.sig_enforce is None else self.sig_enforce
        return asked or self.lockdown not in ("", "none")


@dataclass(frozen=True, slots=True)
class Description:
    """What a module file says of itself, and what its signature is worth to the given certificates."""

    module: ModInfo | None
    """None: compressed in a way that cannot be looked into."""
    signature: Signature | None
    verdict: Verdict | None
    """None as `module` is. Valid if it is so for any of the certificates."""
    certificate: Certificate | None
    """The one of the given certificates that the signature names."""
    compressed: str | None
    signed_outside: bool
    """Signed after compressing: that signature is not the module's."""
    appended: bool
    """Something lies behind a signature, which hides it."""

    @property
    def stripped(self) -> bool:
        """Without debug information: stripped, or built without."""
        return self.module is not None and not self.module.has_debug


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether one guest would load the module; sentences for a person."""

    guest: str
    description: Description
    loads: bool | None
    """None: it depends on something that cannot be known without trying."""
    why: str
    remedy: str = ""
    """Empty if nothing need be done."""


class _Finding(NamedTuple):
    loads: bool | None
    why: str
    remedy: str = ""


def describe(ko: bytes, certificates: Sequence[Certificate] = (), *, name: str = "the file") -> Description:
    """Take a module file apart; xz and gzip are looked into. ConfigError if it is no module."""
    how = find_compression(ko)
    inner = decompress(ko) if how else ko
    if inner is None:
        return Description(None, None, None, None, how, ko.endswith(MAGIC), False)
    module = parse_modinfo(inner, name)
    signature = read_signature(inner)
    verdicts = [verify(inner, certificate) for certificate in certificates]
    named = [c for c in certificates if signature and signature.well_formed and names(signature, c)]
    return Description(
        module=module,
        signature=signature,
        verdict=_overall(signature, verdicts),
        certificate=named[0] if named else None,
        compressed=how,
        signed_outside=how is not None and ko.endswith(MAGIC),
        appended=signature is None and MAGIC in inner,
    )


def explain(ko: bytes, keyring: GuestKeyring, *, was_signed: bool = False, name: str = "the file") -> Explanation:
    """Whether this guest would load the module and, if not, why and what to do.

    `was_signed`: the caller knows that this build was signed, so that a missing signature was stripped off.
    """
    about = describe(ko, keyring.certificates, name=name)
    if about.module is None:
        why = f"it is compressed with {about.compressed}, which kmlab does not look into"
        return Explanation(keyring.guest, about, None, why, "decompress it and ask again")
    findings = [
        *_build_findings(about.module, keyring),
        _signature_finding(about, keyring, was_signed),
        *_cipher_findings(about, keyring),
    ]
    for wanted in (False, None, True):
        for finding in findings:
            if finding.loads is wanted:
                return Explanation(keyring.guest, about, finding.loads, finding.why, finding.remedy)
    raise AssertionError("there is always a finding about the signature")


def _overall(signature: Signature | None, verdicts: list[Verdict]) -> Verdict:
    if signature is None:
        return Verdict.UNSIGNED
    if not signature.well_formed:
        return Verdict.MALFORMED
    return next((v for v in (Verdict.VALID, Verdict.ALTERED) if v in verdicts), Verdict.WRONG_KEY)


def _build_findings(module: ModInfo, keyring: GuestKeyring) -> list[_Finding]:
    found = []
    if keyring.arch and module.machine != keyring.arch:
        why = f"it was built for {module.machine}; this {keyring.what} is {keyring.arch}"
        found.append(_Finding(False, why, f"build it against the headers of this {keyring.what}'s kernel"))
    if not module.has_symbols:
        why = "it was stripped of its symbol table, without which no kernel loads a module"
        found.append(_Finding(False, why, "build it again; to make it small, strip --strip-debug and no more"))
    if keyring.release and module.release and module.release != keyring.release:
        why = f"it was built for kernel {module.release}; this {keyring.what} runs {keyring.release}"
        remedy = f"build it against the headers of this {keyring.what}'s kernel"
        if module.has_versions:
            # The release is then left out of the comparison: same_magic() in kernel/module/version.c.
            found.append(_Finding(None, f"{why}, which takes it only if every symbol's checksum agrees", remedy))
        else:
            found.append(_Finding(False, f'{why} ("Invalid module format")', remedy))
    return found


def _signature_finding(about: Description, keyring: GuestKeyring, was_signed: bool) -> _Finding:
    match about.verdict:
        case Verdict.MALFORMED:
            problem = about.signature.problem if about.signature else ""
            why = f"its signature {problem}; a kernel refuses that even where it asks for no signature"
            return _Finding(False, why, f"replace the signature: {_SIGN}")
        case Verdict.UNSIGNED:
            return _unsigned(about, keyring, was_signed)
        case Verdict.VALID if keyring.secure_boot:
            return _Finding(True, f"it is signed by '{_signer(about)}', which is enrolled")
        case Verdict.ALTERED if keyring.secure_boot:
            # EKEYREJECTED, which is fatal even without enforcement, and the kernel says nothing in its log.
            why = f"it was altered after '{_signer(about)}' signed it, or its signature was"
            return _Finding(False, why, f"build it again, then {_SIGN}")
        case _:
            return _key_not_there(about, keyring)


def _unsigned(about: Description, keyring: GuestKeyring, was_signed: bool) -> _Finding:
    if not keyring.enforces:
        return _Finding(True, f"it is not signed, and this {keyring.what} asks for no signature{_TAINTS}")
    if about.signed_outside:
        why = "it was compressed first and signed after, so the module within has no signature"
        return _Finding(False, why, f"decompress it, {_SIGN}, then compress it again")
    if about.appended:
        why = "something was appended after its signature, so the kernel does not find the signature"
        return _Finding(False, why, f"build it again, then {_SIGN}")
    if was_signed:
        why = "its signature was stripped off: strip and objcopy leave it behind"
        return _Finding(False, why, f"strip first, sign after: {_SIGN}")
    if about.stripped:
        why = "it is not signed; it has no debug information either: strip may have taken both"
        return _Finding(False, why, f"strip first, sign after: {_SIGN}")
    return _Finding(False, "it is not signed", f"sign it: {_SIGN}")


def _key_not_there(about: Description, keyring: GuestKeyring) -> _Finding:
    """Signed by a key that this kernel did not load: not enrolled, or enrolled with Secure Boot off."""
    who = _signer(about)
    if about.signature and _is_kernels_own(about.signature, keyring):
        why = f"it is signed in the name of '{who}', the kernel's own key; only the kernel can check that"
        return _Finding(None if keyring.enforces else True, why)
    if not keyring.enforces:
        why = f"it is signed by '{who}', whose key this kernel has not loaded, and it asks for no signature"
        return _Finding(True, why + _TAINTS)
    if about.certificate is not None:
        why = f"the key of '{who}' is enrolled, but a kernel reads the enrolled keys only with Secure Boot on"
        return _Finding(False, why, "set secure_boot: true for this guest, or do not ask it for signatures")
    why = f"it is signed by '{who}', whose key is not enrolled in this {keyring.what}"
    return _Finding(False, why, f"sign it with the lab's key ({_SIGN}), or enrol that key's certificate")


def _cipher_findings(about: Description, keyring: GuestKeyring) -> list[_Finding]:
    """Signatures that are good but that this kernel may not be able to compute."""
    if about.verdict is not Verdict.VALID or not keyring.secure_boot or about.signature is None:
        return []
    if about.signature.algorithm == "ecdsa":
        old = _before(keyring.release, 5, 13)
        why = "its key is ECDSA, which a kernel reads since 5.13 and only if built with CONFIG_CRYPTO_ECDSA=y"
        return [_Finding(False if old else None, why, f"sign it with an RSA key: {_SIGN}")]
    if about.signature.digest not in ("sha256",):
        why = f"its digest is {about.signature.digest}, which a kernel may lack or have only as a module"
        return [_Finding(None, why, f"sign it with sha256: {_SIGN}")]
    return []


def _signer(about: Description) -> str:
    if about.certificate is not None:
        return kernel_name(about.certificate)
    signature = about.signature or Signature()
    return signature.signer or f"key {signature.key_id or signature.serial}"


def _is_kernels_own(signature: Signature, keyring: GuestKeyring) -> bool:
    names_of_keys = [name.rpartition(": ")[::2] for name in keyring.kernel_keys]
    if signature.key_id:
        return any(key == signature.key_id for _, key in names_of_keys)
    # The kernel may have put the organisation before the common name.
    return bool(signature.signer) and any(
        name == signature.signer or name.endswith(f": {signature.signer}") for name, _ in names_of_keys
    )


def _before(release: str, major: int, minor: int) -> bool:
    numbers = release.split("-", 1)[0].split(".")[:2]
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return False
    return (int(numbers[0]), int(numbers[1])) < (major, minor)
