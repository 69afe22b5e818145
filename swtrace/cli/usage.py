"""How help pages and usage errors read: typer's, without the names of Python types, and errors in one line."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from swtrace.cli.exit_codes import CommandError, ExitCode


class Command(TyperCommand):
    """A subcommand. Its help shows a placeholder (FILE, N) for each value, and nothing for a flag."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, ready to be shown."""
        return [_without_type(each) for each in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name; an error about them names the command."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                vars(error)["ctx"] = ctx
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            CommandError: it was interrupted by Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise CommandError("interrupted", ExitCode.INTERRUPTED) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line after the command's name."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        return ["[OPTIONS]", *(f"{each.display_name_raw}{'...' * (each.nargs != 1)}" for each in arguments)]


class Group(TyperGroup):
    """A command with subcommands, shown like a :class:`Command`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, ready to be shown."""
        return [_without_type(each) for each in super().get_params(ctx)]


def usage_error(error: typer.TyperException) -> CommandError:
    """Return what the parser refused as an error in one line; an empty one if it has printed the help instead."""
    context = getattr(error, "ctx", None)
    path = "swtrace" if context is None else context.command_path
    sentence = " ".join(error.format_message().split()).rstrip(".")
    if sentence:
        stop = "" if sentence.endswith("?") else ";"
        sentence = f"{sentence[0].lower()}{sentence[1:]}{stop} see {path} --help"
    return CommandError(sentence, ExitCode.USAGE)


def _without_type(parameter: Any) -> Any:
    """Return a parameter whose help leaves out ``<bool>``, ``<list[Path]>`` and the like."""
    if isinstance(parameter, TyperArgument):
        vars(parameter)["display_type_rich"] = lambda ctx: ""  # noqa: ARG005 (typer passes it by name)
    elif isinstance(parameter, TyperOption) and parameter.metavar is None:
        parameter.metavar = ""
    return parameter
