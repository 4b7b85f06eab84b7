"""What can go wrong in the control process, each with what the operator can do about it."""

from __future__ import annotations


class Failure(Exception):
    """`message` says what and where, `remedy` what to do next; `status` is what the admin API answers."""

    status = 500

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy

    def __str__(self) -> str:
        """Both, for a terminal or a log."""
        return f"{self.message}. Remedy: {self.remedy}"


class CannotRun(Failure):
    """The daemon can't start or go on here."""


class Invalid(Failure):
    """The request makes no sense."""

    status = 400


class NotFound(Failure):
    """There is no such thing."""

    status = 404


class Conflict(Failure):
    """It contradicts what is there."""

    status = 409


class RequestRefused(Failure):
    """The controller said no; asking again does not help until something changes."""

    status = 409


class NotReady(Failure):
    """Not now; trying again may help."""

    status = 503


class ControllerAway(NotReady):
    """There is no connection to the controller, or it broke before the answer came."""
