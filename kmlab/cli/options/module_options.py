"""Options of the commands that run modules, and the run's options that they become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.shared_options import ask_passphrase

if TYPE_CHECKING:
    from kmlab.config.lab import Lab
    from kmlab.run.result import RunResult
    from kmlab.run.run import Options

_SIGN_WITH = (
    "Sign with the key in this file, or with one of these words. mok: the lab's key. wrong-key: a new key that no "
    "guest knows. altered: the lab's key, then change one byte. stripped: the lab's key, then strip the module. "
    "auto: the lab's key if the guest has Secure Boot. no: do not sign."
)
Params = Annotated[
    list[str] | None,
    typer.Option("-p", "--param", help="Set a module parameter; repeat the option for several.", metavar="NAME=VALUE"),
]
Exercise = Annotated[
    str | None, typer.Option("--exercise", help="Run this command in the guest between load and unload.", metavar="CMD")
]
Timeout = Annotated[
    str | None, typer.Option("--timeout", help="Time limit for each step, for example 30, 90s or 2m.", metavar="S")
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="Send this folder, which holds DIR and all that its build needs.", metavar="FOLDER"),
]
MakeVariables = Annotated[
    list[str] | None,
    typer.Option("--make", help="Set a variable of make; repeat the option for several.", metavar="VAR=VALUE"),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Restore the guest before the run.")]
NoSign = Annotated[bool, typer.Option("--no-sign", help="Do not sign the module, even if the guest has Secure Boot.")]
SignWith = Annotated[
    str | None,
    typer.Option("--sign-with", help=_SIGN_WITH, metavar="KEY"),
]
Timeline = Annotated[
    Path | None,
    typer.Option("--timeline", help="Write a chart of where the time went, as .svg or .html.", metavar="FILE"),
]
Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        help="Run in guests with each of these kernels, for example 6.1,6.12,backports.",
        metavar="K,…",
        autocompletion=completion.kernels,
    ),
]
DebugKernel = Annotated[
    bool, typer.Option("--debug-kernel", help="Give these guests a debug kernel, which kmlab builds first.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", help="Use at most this many guests in parallel.", metavar="N", min=1)
]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the module loaded.")]
ReportPaths = Annotated[
    list[Path] | None,
    typer.Option(
        "--report", help="Write a report; the file's ending selects the format: .xml, .html, …", metavar="FILE"
    ),
]
Coverage = Annotated[
    Path | None,
    typer.Option("--coverage", help="Write which lines ran: .info, .xml, .html, or a folder of pages.", metavar="FILE"),
]
ShardWord = Annotated[
    str | None,
    typer.Option("--shard", help="Run only this part of the runs, as 2/8; auto: ask the CI server.", metavar="N/M"),
]
Durations = Annotated[
    list[Path] | None,
    typer.Option(
        "--durations", help="With --shard: deal the runs by the times in these earlier results.", metavar="FILE"
    ),
]
Junit = Annotated[Path | None, typer.Option("--junit", help="Write a JUnit XML report.", metavar="FILE")]
Github = Annotated[bool, typer.Option("--github", help="Print annotations for GitHub Actions.")]


def options_of(
    param: list[str] | None,
    exercise: str | None,
    timeout: str | None,
    *,
    fresh: bool = False,
    keep: bool = False,
    sign: str | None = None,
) -> Options:
    """Turn the command's options into the run's options."""
    from kmlab.kernel.module.modinfo import parse_param
    from kmlab.run.run import Options

    return Options(
        fresh=fresh,
        keep=keep,
        params=dict(parse_param(text) for text in param or []),
        exercise=exercise,
        timeout=seconds_of(timeout) if timeout else None,
        sign=sign or "auto",
        ask=ask_passphrase,
    )


def with_sources(options: Options, root: Path | None, make: list[str] | None) -> Options:
    """Add what --root and --make say to a run's options."""
    import dataclasses

    from kmlab.common.errors import ConfigError
    from kmlab.config.yaml.reader import quoted

    variables = {}
    for text in make or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or not name.isascii() or "\n" in value:
            raise ConfigError(f"--make {quoted(text)} is not VAR=VALUE", "for example --make LLVM=1")
        variables[name] = value
    return dataclasses.replace(options, root=root, make=variables)


def with_coverage(options: Options, coverage: Path | None) -> Options:
    """Add what --coverage asks for: counters in the module."""
    import dataclasses

    if coverage is None:
        return options
    from kmlab.report.coverage import check_coverage

    check_coverage(coverage)
    return dataclasses.replace(options, coverage=True)


def report_coverage(path: Path, results: Sequence[RunResult]) -> None:
    """Write the report of --coverage, and say how much ran."""
    from kmlab.cli.output import render
    from kmlab.report.coverage import write_coverage

    render.note(write_coverage(path, results))


def sign_choice(no_sign: bool, sign_with: str | None) -> str | None:
    """Turn --no-sign and --sign-with into one word; None if neither is given."""
    from kmlab.common.errors import ConfigError

    if no_sign and sign_with:
        raise ConfigError("--no-sign and --sign-with exclude each other", "use only one of them")
    return "no" if no_sign else sign_with


def seconds_of(text: str, option: str = "--timeout") -> float:
    """Return the seconds of a time that an option gives."""
    from kmlab.common.errors import ConfigError
    from kmlab.config.yaml.reader import quoted
    from kmlab.config.yaml.types import parse_duration

    try:
        return parse_duration(text)
    except ConfigError as error:
        raise ConfigError(f"{option} {quoted(text)} {error.message}", error.hint) from None


def columns_of(lab: Lab, kernels: str | None) -> list[str]:
    """Return the kernels that `--kernels` names; `matrix` stands for lab.yaml's matrix."""
    from kmlab.common.errors import ConfigError

    if kernels is None:
        return []
    words = [word.strip() for word in kernels.split(",") if word.strip()]
    if not words:
        raise ConfigError("--kernels names no kernel", "for example --kernels 6.1,6.12,backports")
    if "matrix" in words and not lab.matrix:
        raise ConfigError(
            f"--kernels matrix, but {lab.file} has no matrix", "add `matrix: [6.1, 6.12]`, or name kernels"
        )
    return [column for word in words for column in (lab.matrix if word == "matrix" else (word,))]
