"""Format the answers of `kmlab sign`: as lines for people, and as JSON documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kmlab.kernel.signing.key_ids import kernel_name, key_id
from kmlab.kernel.signing.load_check import Description, Explanation
from kmlab.kernel.signing.signature import Verdict
from kmlab.run.documents import ExplainDocument, ExplainedFile, SignDocument, WhyDocument, WhyFile
from kmlab.secure_boot.sign_files import FileExplanation, SignResult
from kmlab.secure_boot.this_host import HostExplanation, HostState, certificate_names

_VALIDITY = {
    Verdict.VALID: "and the signature is valid",
    Verdict.ALTERED: "but the signature is not valid: the module or the signature was altered after signing",
    Verdict.WRONG_KEY: "but the certificate of its key is not known here, so the signature was not checked",
}


def done_lines(done: SignResult) -> list[str]:
    certificate = done.signer.pair.certificate
    lines = list(done.notes)
    if done.mok:
        lines.append(f"the lab's key: {kernel_name(certificate)}")
        lines += [f"  {entry.guest}: {entry.what}" for entry in done.guests]
        if not done.guests:
            lines.append(
                "  no guest of this lab has Secure Boot: set `secure_boot: true` for one in lab.yaml, or without a "
                "lab.yaml use --secure-boot"
            )
    for entry in done.signed:
        before = f", instead of '{entry.replaced}'" if entry.replaced else ""
        lines.append(f"{entry.file}: signed by '{done.signer.name}'{before}")
    return lines


def done_document(done: SignResult) -> SignDocument:
    certificate = done.signer.pair.certificate
    return {
        "schema": "kmlab.sign/1",
        "key": {
            "name": kernel_name(certificate),
            "key_id": key_id(certificate),
            "sha256": done.signer.fingerprint,
            "not_after": certificate.not_valid_after_utc.isoformat(),
        },
        "notes": list(done.notes),
        "guests": [{"guest": e.guest, "enrolled": e.enrolled, "what": e.what} for e in done.guests],
        "signed": [{"file": str(e.file), "replaced": e.replaced} for e in done.signed],
    }


def explained_lines(found: Sequence[FileExplanation]) -> list[str]:
    lines: list[str] = []
    for each in found:
        about = each.description
        if about.module is not None:
            built = f" for kernel {about.module.release}" if about.module.release else ""
            lines.append(f"{each.file}: module '{about.module.name}', built{built} ({about.module.machine})")
        else:
            lines.append(f"{each.file}: compressed with {about.compressed}")
        lines += [f"  {sentence}" for sentence in _sentences(about)]
        lines += [f"  {_guest_line(entry)}" for entry in each.guests]
    return lines


def explained_document(found: Sequence[FileExplanation]) -> ExplainDocument:
    return {"schema": "kmlab.explain/1", "files": [_file(each) for each in found]}


def why_lines(found: Sequence[HostExplanation]) -> list[str]:
    """Return what this host would do with each file, with the commands that mend it."""
    lines: list[str] = []
    for each in found:
        lines += explained_lines([FileExplanation(each.file, each.description, ())])
        lines.append(f"  {_guest_line(dataclasses.replace(each.verdict, remedy=''))}")
        lines += ["  What to do:"] if each.commands else []
        lines += [f"    {command}" for command in each.commands]
        if any("mokutil --import" in command for command in each.commands):
            lines.append("  After the reboot, a blue screen waits ten seconds: press a key, and choose Enroll MOK.")
    return lines


def why_document(state: HostState, found: Sequence[HostExplanation]) -> WhyDocument:
    keyring = state.keyring
    files: list[WhyFile] = []
    for each in found:
        about = _file(FileExplanation(each.file, each.description, (each.verdict,)))
        files.append({**about, "commands": list(each.commands)})
    return {
        "schema": "kmlab.why/1",
        "host": {
            "release": keyring.release,
            "arch": keyring.arch,
            "vermagic": state.vermagic,
            "secure_boot": keyring.secure_boot,
            "lockdown": keyring.lockdown,
            "enforces": keyring.enforces,
            "enrolled": certificate_names(keyring.certificates),
            "firmware_keys": certificate_names(state.firmware_keys),
            "pending": state.pending,
        },
        "files": files,
    }


def _sentences(about: Description) -> list[str]:
    sentences = []
    signature = about.signature
    if about.module is None:
        sentences.append("kmlab cannot read compressed modules: decompress it and try again")
    elif signature is None:
        sentences.append("not signed")
    elif signature.problem:
        sentences.append(f"its signature {signature.problem}")
    else:
        who = kernel_name(about.certificate) if about.certificate else _signer(about)
        validity = _VALIDITY[about.verdict or Verdict.WRONG_KEY]
        sentences.append(f"signed by '{who}' with {signature.digest} and {signature.algorithm}, {validity}")
    if about.compressed and about.module is not None:
        sentences.append(f"compressed with {about.compressed}; these lines describe the module inside")
    if about.stripped:
        sentences.append("no debug information: it was stripped, or built without")
    return sentences


def _signer(about: Description) -> str:
    assert about.signature is not None
    return about.signature.signer or f"key {about.signature.key_id or about.signature.serial}"


def _guest_line(entry: Explanation) -> str:
    outcome = {True: "loads", False: "does NOT load", None: "may load"}[entry.loads]
    remedy = f" What to do: {entry.remedy}." if entry.remedy else ""
    return f"{entry.guest}: {outcome}: {entry.why}.{remedy}"


def _file(each: FileExplanation) -> ExplainedFile:
    about, signature = each.description, each.description.signature
    module = about.module
    return {
        "file": str(each.file),
        "module": module.name if module else None,
        "machine": module.machine if module else None,
        "release": module.release if module else None,
        "signed": signature is not None,
        "signer": _signer(about) if signature and not signature.problem else None,
        "key_id": key_id(about.certificate) if about.certificate else (signature.key_id or None) if signature else None,
        "serial": (signature.serial or None) if signature else None,
        "digest": (signature.digest or None) if signature else None,
        "verdict": about.verdict.value if about.verdict else None,
        "problem": signature.problem if signature else None,
        "stripped": about.stripped,
        "compressed": about.compressed,
        "guests": [{"guest": e.guest, "loads": e.loads, "why": e.why, "remedy": e.remedy or None} for e in each.guests],
    }
