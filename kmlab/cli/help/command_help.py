"""The `--help` of a command: an argument is named as the person types it, without the Python type behind it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

_HEADINGS = {"argument": "Arguments", "option": "Options"}


class Command(TyperCommand):
    """A command whose help says `DIR...` where typer says `[DIR]...` and `DIR <list[Path]>`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        arguments = [each for each in self.get_params(ctx) if each.param_type_name == "argument"]
        names = [(argument_name(each), each.required) for each in arguments]
        return [self.options_metavar or "", *(name if required else f"[{name}]" for name, required in names)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the tables of arguments and of options."""
        parameters = self.get_params(ctx)
        for kind, heading in _HEADINGS.items():
            rows = [row for each in parameters if each.param_type_name == kind if (row := _row(each, ctx))]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _row(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    record: tuple[str, str] | None = parameter.get_help_record(ctx)
    if record is None or parameter.param_type_name == "option":
        return record
    return argument_name(parameter), record[1]


def argument_name(parameter: Any) -> str:
    """Return what stands for an argument in help: `DIR`, or `DIR...` for several."""
    name: str = parameter.metavar or parameter.name.upper()
    return f"{name}..." if parameter.nargs != 1 else name
