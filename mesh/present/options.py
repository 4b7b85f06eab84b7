"""The options that commands of `nodectl` and `meshctl` share: declarations for click, which does the reading."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mesh.present.table import Look, Output
from mesh.present.units import seconds

_Command = TypeVar("_Command", bound=click.Command)


def colour() -> bool:
    """Whether the running command line was started with colours (`click.Context.color`)."""
    return bool(click.get_current_context().color)


def examples(*lines: str) -> Callable[[_Command], _Command]:
    """Give a command's help a closing section of example calls."""

    def with_epilog(command: _Command) -> _Command:
        command.epilog = "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines)  # \b: click must not rewrap it
        return command

    return with_epilog


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--output` and `--no-headers`, passed on as `look`."""

    @click.option(
        "-o",
        "--output",
        type=click.Choice([output.value for output in Output]),
        default=Output.TABLE.value,
        show_default=True,
        metavar="FORMAT",
        help="table, wide, json or yaml.",
    )
    @click.option("--no-headers", is_flag=True, help="Leave the table's titles off.")
    @functools.wraps(command)
    def with_look(*args: Any, output: str, no_headers: bool, **options: Any) -> None:
        command(*args, look=Look(Output(output), not no_headers, colour()), **options)

    return with_look


def watch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--watch` and `--interval`."""
    interval = click.option(
        "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks."
    )
    return click.option("-w", "--watch", "watching", is_flag=True, help="Go on showing what changes.")(
        interval(command)
    )


def qualified(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of an option that takes a `namespace/name`."""
    if value is not None and not all(value.partition("/")[::2]):
        raise click.BadParameter(f"'{value}' is not NAMESPACE/NAME")
    return value


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes `90`, `30s`, `5m`, `24h` or `7d`: seconds, or a usage error."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
