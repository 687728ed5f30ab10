"""Say which command was meant, where the word is another program's or is misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from typer.core import TyperGroup

_OTHER_NAMES = {
    "up": ("start", "boot", "create", "launch", "provision"),
    "down": ("stop", "halt", "shutdown", "poweroff", "suspend"),
    "destroy": ("rm", "remove", "delete", "del", "clean", "purge", "undefine"),
    "reset": ("restart", "reboot", "restore", "revert", "snapshot"),
    "ssh": ("shell", "sh", "exec", "enter", "attach", "connect", "login", "bash"),
    "status": ("ls", "ps", "list", "guests", "info", "show"),
    "log": ("logs", "dmesg", "journal", "tail"),
    "console": ("serial", "tty", "virsh"),
    "validate": ("check", "lint", "verify"),
    "run": ("try", "exercise"),
    "test": ("tests", "ci", "matrix"),
    "build": ("make", "compile", "kbuild"),
    "load": ("insmod", "modprobe", "install"),
    "unload": ("rmmod", "uninstall"),
    "crashes": ("crash", "oops", "analyze", "analyse", "decode", "judge"),
    "sign": ("mok", "key", "keys", "mokutil", "kmodsign"),
    "gdb": ("debug", "debugger", "gdbserver"),
    "cp": ("scp", "copy", "push", "rsync"),
    "why": ("explain",),
    "init": ("new", "adopt", "setup"),
    "doctor": ("diagnose", "preflight"),
    "schema": ("schemas",),
    "image list": ("images",),
    "image pull": ("pull", "download", "fetch"),
    "image kernels": ("kernels",),
    "image prune": ("prune",),
    "device list": ("devices", "lspci", "lsusb"),
    "device add": ("plug", "hotplug", "attach-device"),
    "device remove": ("unplug", "eject", "detach"),
    "add": ("plug", "attach"),
    "remove": ("rm", "del", "delete", "unplug", "detach"),
    "list": ("ls", "show"),
    "pull": ("download", "fetch", "get", "add"),
    "prune": ("rm", "remove", "delete", "clean", "gc"),
    "kernels": ("kernel", "versions"),
    "verify": ("check",),
}
"""Each command with the words by which people, and programs like this one, call the same thing."""


class Group(TyperGroup):
    """A group of commands that suggests one where it does not have the given word."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names. The error for an unknown word says what was meant."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:  # typer's own, of a module that is not always named the same
            if hasattr(error, "message") and args:
                above = f"{self.name} " if ctx.parent is not None else ""
                error.message = unknown_command(args[0], command_words(self), above)
            raise


def command_words(group: Any, above: str = "") -> list[str]:
    """Return the commands of a group as they are typed, those of a group in it too: `image list`."""
    words: list[str] = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        words += command_words(command, f"{above}{name} ") if inner else [f"{above}{name}"]
    return words


def unknown_command(word: str, commands: Collection[str], above: str = "") -> str:
    """Return the message for a word that is no command: `no command 'stop': did you mean kmlab down?`."""
    meant = suggested_commands(word, commands)
    listed = " or ".join(f"`kmlab {above}{each}`" for each in meant)
    return f"no command '{above}{word}'" + (f": did you mean {listed}?" if meant else f": see `kmlab {above}--help`")


def suggested_commands(word: str, commands: Collection[str]) -> list[str]:
    """Return the commands that this word may mean: other names first, then names that look like it; at most two."""
    same = [name for name, others in _OTHER_NAMES.items() if name in commands and word.lower() in others]
    return same[:2] or difflib.get_close_matches(word.lower()[:64], list(commands), n=1, cutoff=0.6)
