"""Entry point of kmlab: register the commands, build the real Host, and turn errors into exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from kmlab import __version__
from kmlab.cli import (
    agent_commands,
    config_commands,
    debugger_commands,
    inspect_commands,
    kernel_commands,
    lab_commands,
    module_commands,
    shard_commands,
    sign_commands,
    torture_command,
    watch_command,
)
from kmlab.cli.help.command_help import Command
from kmlab.cli.help.command_words import Group
from kmlab.cli.options.shared_options import cli_state
from kmlab.common.errors import KmlabError, unexpected

if TYPE_CHECKING:
    from kmlab.host import Host

INTERRUPTED = 130

app = typer.Typer(
    name="kmlab",
    cls=Group,
    help="A virtual lab for Linux kernel modules: modules run in a throw-away VM, never on your own kernel.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
images = typer.Typer(
    help="List, download, build and verify images.", cls=Group, no_args_is_help=True, rich_markup_mode=None
)
caches = typer.Typer(help="Say what a CI server should cache.", cls=Group, no_args_is_help=True, rich_markup_mode=None)
kernels = typer.Typer(
    help="Build, list and move debug kernels.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
)
devices = typer.Typer(
    help="List, add and remove the devices of a running guest.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COMMANDS: tuple[Callable[..., None], ...] = (
    lab_commands.init,
    config_commands.validate,
    lab_commands.doctor,
    lab_commands.selftest,
    lab_commands.up,
    module_commands.run,
    watch_command.watch,
    module_commands.test,
    shard_commands.merge,
    torture_command.torture,
    module_commands.build,
    module_commands.load,
    module_commands.unload,
    sign_commands.sign,
    sign_commands.why,
    module_commands.crashes,
    inspect_commands.status,
    inspect_commands.log,
    inspect_commands.ssh,
    inspect_commands.console,
    debugger_commands.gdb,
    agent_commands.mcp,
    inspect_commands.cp,
    inspect_commands.ssh_config,
    lab_commands.reset,
    lab_commands.down,
    lab_commands.destroy,
    config_commands.schema,
)
_IMAGE_COMMANDS: dict[str, Callable[..., None]] = {
    "list": lab_commands.image_list,
    "pull": lab_commands.image_pull,
    "build": lab_commands.image_build,
    "kernels": lab_commands.image_kernels,
    "export": lab_commands.image_export,
    "import": lab_commands.image_import,
    "verify": lab_commands.image_verify,
    "prune": lab_commands.image_prune,
}
_KERNEL_COMMANDS: dict[str, Callable[..., None]] = {
    "build": kernel_commands.kernel_build,
    "list": kernel_commands.kernel_list,
    "config": kernel_commands.kernel_config,
    "prune": kernel_commands.kernel_prune,
    "export": kernel_commands.kernel_export,
    "import": kernel_commands.kernel_import,
}
_DEVICE_COMMANDS: dict[str, Callable[..., None]] = {
    "list": inspect_commands.device_list,
    "add": inspect_commands.device_add,
    "remove": inspect_commands.device_remove,
}
_CACHE_COMMANDS: dict[str, Callable[..., None]] = {"key": config_commands.cache_key}
for command in _COMMANDS:
    app.command(cls=Command)(command)
for name, command in _IMAGE_COMMANDS.items():
    images.command(name, cls=Command)(command)
for name, command in _KERNEL_COMMANDS.items():
    kernels.command(name, cls=Command)(command)
for name, command in _DEVICE_COMMANDS.items():
    devices.command(name, cls=Command)(command)
for name, command in _CACHE_COMMANDS.items():
    caches.command(name, cls=Command)(command)
app.add_typer(images, name="image")
app.add_typer(caches, name="cache")
app.add_typer(kernels, name="kernel")
app.add_typer(devices, name="device")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if version:
        from kmlab.cli.output import render

        render.print_line(f"kmlab {__version__}")
        raise typer.Exit


def _build_host() -> Host:
    from kmlab.api import build_host

    return build_host()


cli_state.build_host = _build_host


def main() -> NoReturn:
    """Run the command of this process's arguments and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)
    except KmlabError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        _usage_error(error)
        _fail(_known_error(error))
    if code == INTERRUPTED:  # newer versions of Typer turn a KeyboardInterrupt into an exit code
        from kmlab.cli.output import render

        render.interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def program() -> NoReturn:
    """Run `main` as a process of its own, and end it with os._exit: Python's own shutdown takes noticeable time.

    If the output cannot be flushed, Python's own shutdown reports it.
    """
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            from kmlab.cli.output import render

            with contextlib.suppress(OSError):
                render.flush_output()
                os._exit(ended.code)
        raise
    except KeyboardInterrupt:  # another one, while the first was handled
        os._exit(INTERRUPTED)


def _known_error(error: Exception) -> KmlabError:
    """Return one line for an error that no code expected; --debug shows its traceback."""
    from kmlab.common import paths

    no_space = paths.disk_full_error(error) if isinstance(error, OSError) else None
    foreseen = no_space or unexpected(error, "internal error")
    foreseen.__cause__ = error
    return foreseen


_INTERRUPT_PAUSE = 0.5
"""Seconds after an interrupt in which others are taken for the same one, so that what it began is not torn."""
_interrupted = [-_INTERRUPT_PAUSE]
"""When the last interrupt came, by the monotonic clock."""


def _interrupt(number: int, frame: Any) -> None:
    now = time.monotonic()
    if now - _interrupted[0] >= _INTERRUPT_PAUSE:
        _interrupted[0] = now
        raise KeyboardInterrupt


def _fail(error: KmlabError) -> NoReturn:
    from kmlab.cli.output import render

    if cli_state.debug:
        traceback.print_exception(error)
    render.error(error, as_json=cli_state.json)
    sys.exit(error.exit_code)


def _usage_error(error: Exception) -> None:
    """Show Typer's own errors about arguments, and exit with code 2."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        if "--json" in sys.argv:
            from kmlab.cli.output import render

            message = getattr(error, "message", str(error))
            render.document({"schema": "kmlab.error/1", "error": {"message": message, "hint": None}})
        sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    program()
