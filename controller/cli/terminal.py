"""meshctl at the terminal: colours, progress, watching, and the options its commands share."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from mesh.failure import Failure
from mesh.present import Column, Look, Output, Row, age, seconds
from mesh.watch import ENTER, LEAVE, Watch

_Command = TypeVar("_Command", bound=click.Command)


def coloured(stream: Any) -> bool:
    """Whether colours are welcome there (https://no-color.org)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """While the body runs, after one second and on a terminal, a line on standard error says so."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    began = time.monotonic()

    def show() -> None:
        while not done.wait(1.0):
            sys.stderr.write(f"\r\x1b[K{doing} … {age(time.monotonic() - began)}")
            sys.stderr.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if time.monotonic() - began > 1.0:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def show(look: Look, answer: Any, columns: Sequence[Column], *, empty: str) -> None:
    """Print a list or an object; `empty` goes to standard error where a table would have no rows."""
    text = look.render(answer, columns, time.time())
    if text:
        click.echo(text, nl=False)
    else:
        click.echo(empty, err=True)


def watch(
    fetch: Callable[[], Sequence[Row]],
    columns: Sequence[Column],
    key: Callable[[Row], Hashable],
    *,
    look: Look,
    interval: float,
    title: str,
    rates: Sequence[str],
) -> None:
    """Ask and show until interrupted: redrawn on a terminal, the changed rows anywhere else."""
    view = Watch(columns, key, output=look.output, headers=look.headers, colour=look.colour, rates=rates)
    redraw = look.tabular and sys.stdout.isatty()
    try:
        if redraw:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # else it would leave the screen as it is
            click.echo(ENTER, nl=False)
        while True:
            rows, now = fetch(), time.time()
            if redraw:
                height = os.get_terminal_size(sys.stdout.fileno()).lines
                heading = f"every {interval:g}s: {title}   {time.strftime('%H:%M:%S')}"
                click.echo(view.frame(rows, title=heading, now=now, height=height), nl=False)
            else:
                click.echo(view.changes(rows, now=now), nl=False)
            time.sleep(interval)
    except KeyboardInterrupt:
        pass
    finally:
        if redraw:
            click.echo(LEAVE, nl=False)


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
        command(*args, look=Look(Output(output), not no_headers, coloured(sys.stdout)), **options)

    return with_look


def watch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--watch` and `--interval`."""
    interval = click.option(
        "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks."
    )
    return click.option("-w", "--watch", "watching", is_flag=True, help="Go on showing what changes.")(
        interval(command)
    )


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that takes `90`, `30s`, `5m`, `24h` or `7d`: seconds, or a usage error."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def run(cli: click.Group, name: str) -> None:
    """The process's whole life: run the command line, say what failed, exit with the documented status."""
    try:
        cli(prog_name=name)
    except Failure as failure:
        click.echo(failure.text(colour=coloured(sys.stderr)), err=True, nl=False)
        sys.exit(failure.status)
