"""kmlab sign and why: enrol the lab's key, sign modules, explain their signatures and why a kernel refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.shared_options import (
    Debug,
    Json,
    LabFile,
    Verbose,
    ask_passphrase,
    open_lab,
    real_host,
    set_global_options,
    use_default_lab,
)

if TYPE_CHECKING:
    from kmlab.config.lab import Lab
    from kmlab.secure_boot.sign_files import SignResult
    from kmlab.secure_boot.this_host import HostExplanation, HostState


def sign(
    files: Annotated[list[Path] | None, typer.Argument(help="Modules to sign, in place.", metavar="FILE.ko")] = None,
    mok: Annotated[
        bool,
        typer.Option(
            "--mok", help="Create the lab's key if it does not exist, and enrol it in guests with Secure Boot."
        ),
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="Sign with this key; with --mok, make it the lab's key.", metavar="K")
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(
            "--cert",
            help="Certificate for the key; default: the file with the same base name next to the key.",
            metavar="C",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print who signed the files, and which guests would load them.")
    ] = False,
    guest: Annotated[
        list[str] | None,
        typer.Option(
            "--guest",
            "-g",
            help="Enrol the key only in this guest; repeat the option for several.",
            metavar="GUEST",
            autocompletion=completion.guests,
        ),
    ] = None,
    via_mokmanager: Annotated[
        bool, typer.Option("--via-mokmanager", help="Enrol the key through MokManager's screens, as a user does.")
    ] = False,
    lab: LabFile = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Sign modules, enrol the lab's key, or explain a signature."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError
    from kmlab.secure_boot import sign_text

    if not (files or mok):
        raise ConfigError("no file to sign", "kmlab sign FILE.ko, or kmlab sign --mok for the lab's key")
    if cert and not key and not explain:
        raise ConfigError("--cert needs its key", "add --key K")
    if explain:
        if mok or key or via_mokmanager or not files:
            raise ConfigError("--explain signs nothing", "kmlab sign --explain FILE.ko")
        _explain(files, cert, lab, json)
        return
    if via_mokmanager and not (mok and guest):
        raise ConfigError("--via-mokmanager needs --mok and --guest", "add --mok --guest GUEST")
    opened = _lab_with_key(lab, files or []) if mok or not key else None
    done = _sign(opened, files or [], key, cert, guest, mok, via_mokmanager)
    render.document(sign_text.done_document(done)) if json else render.print_lines(sign_text.done_lines(done))


def _lab_with_key(file: Path | None, files: list[Path]) -> Lab:
    """Return the lab whose key signs: lab.yaml's, that of an earlier run here, or one of this module's folder."""
    from kmlab.common.errors import ConfigError
    from kmlab.config.default_lab import GuestSettings, find_default_lab, holds_module
    from kmlab.config.lab import find_lab

    here = Path.cwd()
    if file or find_lab(here) or find_default_lab(here):
        return open_lab(file)
    if not any(map(holds_module, (here, *(file.parent for file in files)))):
        raise ConfigError(
            "no lab.yaml here, so there is no lab key to sign with",
            "kmlab init, or name a key: --key K, or work in the folder of a module",
        )
    return use_default_lab(GuestSettings())


def _sign(
    lab: Lab | None,
    files: list[Path],
    key: Path | None,
    cert: Path | None,
    guests: list[str] | None,
    mok: bool,
    via_mokmanager: bool,
) -> SignResult:
    from kmlab.cli.output import render
    from kmlab.provision import lifecycle
    from kmlab.provision.plan import lab_key
    from kmlab.secure_boot import sign_files

    notes: list[str] = []
    specs = (
        ([lab.guest(name) for name in dict.fromkeys(guests)] if guests else list(lab.guests.values())) if lab else []
    )
    if via_mokmanager:
        sign_files.require_secure(specs)
    if lab is not None and (mok or key is None):
        own = lifecycle.lab_files(lab)
        if key is not None:
            notes += sign_files.adopt(own, key, cert, ask_passphrase)
        elif mok:
            notes += sign_files.make(own, lab.name)
        signer = lab_key.lab_signer(own, lab.name, ask_passphrase)
    else:
        assert key is not None
        signer = lab_key.other_signer(key, cert, ask_passphrase)
    done = sign_files.sign_files(signer, files)
    if via_mokmanager and lab is not None:
        with render.reporting() as events:
            for spec in specs:
                lifecycle.enrol_by_mokmanager(real_host(), lab, spec, events)
    enrolments = sign_files.enrolments(lab, specs) if lab is not None and mok else []
    return sign_files.SignResult(signer, [*notes, *signer.pair.notes], enrolments, done, mok)


def why(
    files: Annotated[list[Path], typer.Argument(help="Modules that this machine refuses.", metavar="FILE.ko")],
    cert: Annotated[
        Path | None, typer.Option("--cert", help="Check the signature with this certificate too.", metavar="C")
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain why this machine refuses a module.

    This asks the machine's own kernel, loads nothing, and prints the commands that mend it.
    """
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.secure_boot import sign_text, this_host

    state, explained = _on_this_host(files, cert, lab)
    if json:
        render.document(sign_text.why_document(state, explained))
        return
    render.print_lines([*this_host.state_lines(state), *sign_text.why_lines(explained)])


def _on_this_host(files: list[Path], cert: Path | None, lab: Path | None) -> tuple[HostState, list[HostExplanation]]:
    from kmlab.config.default_lab import GuestSettings, default_lab, find_default_lab
    from kmlab.config.lab import find_lab
    from kmlab.host.key_files import CERTIFICATE, KEY, KeyPaths, load_certificate
    from kmlab.host.running_kernel import read_running_kernel
    from kmlab.provision.lifecycle import lab_files
    from kmlab.secure_boot import this_host

    here = Path.cwd()
    known = lab or find_lab(here) or find_default_lab(here)
    keys = lab_files(open_lab(lab) if known else default_lab(here, GuestSettings())).keys
    own = KeyPaths(keys / KEY, keys / CERTIFICATE, "this folder's", True)
    certificates = [load_certificate(cert)] if cert else []
    state = this_host.host_state(read_running_kernel())
    return state, [this_host.explain_on_host(path, state, own, certificates) for path in files]


def _explain(files: list[Path], cert: Path | None, lab: Path | None, json: bool) -> None:
    from kmlab.cli.output import render
    from kmlab.config.default_lab import find_default_lab
    from kmlab.config.lab import find_lab
    from kmlab.host.key_files import load_certificate
    from kmlab.secure_boot import sign_files, sign_text, this_host

    if not (lab or find_lab(Path.cwd()) or find_default_lab(Path.cwd())):
        state, on_host = _on_this_host(files, cert, lab)
        if not json:
            render.print_lines([*this_host.state_lines(state), *sign_text.why_lines(on_host)])
            return
        explained = [sign_files.FileExplanation(each.file, each.description, (each.verdict,)) for each in on_host]
        render.document(sign_text.explained_document(explained))
        return
    opened = open_lab(lab)
    certificates = [load_certificate(cert)] if cert else []
    explained = [sign_files.explain_file(path, opened, certificates) for path in files]
    render.document(sign_text.explained_document(explained)) if json else render.print_lines(
        sign_text.explained_lines(explained)
    )
