"""What goes wrong, in words for whoever typed the command."""

from __future__ import annotations


class KubebedError(Exception):
    """A cluster that can't be built, made, found, or used so; the text says what to do."""


class UnfitMachine(KubebedError):
    """This machine can't have a cluster, whatever is typed; the text has every reason."""
