"""meshctl at the terminal: what touches screen, clock and process. What is shown `mesh.present` says.

The other command line has the same few lines (a test compares them): their rooms share only `mesh`, which does no I/O.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from mesh.present.failure import Failure
from mesh.present.table import Column, Look, Row
from mesh.present.units import age
from mesh.present.watch import ENTER, LEAVE, Watch


def run(cli: click.Group, name: str) -> None:
    """The process's whole life: run the command line, say what failed, exit with the documented status."""
    try:
        cli(prog_name=name, color=_coloured(sys.stdout) or None)
    except Failure as failure:
        click.echo(failure.text(colour=_coloured(sys.stderr)), err=True, nl=False)
        sys.exit(failure.status)


def _coloured(stream: Any) -> bool:
    """Whether colours are welcome there (https://no-color.org)."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def show(look: Look, answer: Any, columns: Sequence[Column], *, empty: str) -> None:
    """Print a list or an object; `empty` goes to standard error where a table would have no rows."""
    text = look.render(answer, columns, time.time())
    click.echo(text or empty, err=not text, nl=not text)


def watch(fetch: Callable[[], Sequence[Row]], view: Watch, *, interval: float, title: str) -> None:
    """Ask and show until interrupted: redrawn on a terminal, the changed rows anywhere else."""
    redraw = view.tabular and sys.stdout.isatty()
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


@contextmanager
def progress(doing: str) -> Iterator[None]:
    """While the body runs, after one second and on a terminal, a line on standard error says so."""
    done = threading.Event()
    thread = threading.Thread(target=_tell, args=(doing, done), daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


def _tell(doing: str, done: threading.Event) -> None:
    began, written = time.monotonic(), False
    while not done.wait(1.0):
        written = True
        click.echo(f"\r\x1b[K{doing} … {age(time.monotonic() - began)}", err=True, nl=False)
    if written:
        click.echo("\r\x1b[K", err=True, nl=False)
