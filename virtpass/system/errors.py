"""Errors that reach a user: what happened, why, what to do, and the exit status.

Imported by the hook: no imports here.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_PERMISSION = 5
EXIT_UNAVAILABLE = 6


class VirtpassError(Exception):
    """A failure that is explained in one line.

    Args:
        reference: stable kebab-case name of the failure, for programs and documentation.
        what: what happened, with why; one sentence without a full stop.
        remedy: what the user can do, one sentence without a full stop; may be empty.
    """

    exit_status = EXIT_FAILED

    def __init__(self, reference: str, what: str, remedy: str = "") -> None:
        self.reference = reference
        self.what = one_line(what)
        self.remedy = one_line(remedy)
        super().__init__(self.line)

    @property
    def line(self) -> str:
        """The whole message in one line: ``what: remedy``."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class UsageError(VirtpassError):
    """The input cannot be understood."""

    exit_status = EXIT_USAGE


class NotFoundError(VirtpassError):
    """There is no such device or domain."""

    exit_status = EXIT_NOT_FOUND


class RefusedError(VirtpassError):
    """The request is understood, but it is not safe or not possible in the present state."""

    exit_status = EXIT_REFUSED


class PermissionDeniedError(VirtpassError):
    """The user may not do this."""

    exit_status = EXIT_PERMISSION


class UnavailableError(VirtpassError):
    """Something that is needed on this host does not answer or is not there."""

    exit_status = EXIT_UNAVAILABLE


class FailedError(VirtpassError):
    """Something was tried and did not work; the message tells in which state things are."""


def one_line(text: str) -> str:
    """Return ``text`` as one printable line.

    Names of domains, drivers and processes come from outside: control characters in them (line breaks,
    terminal escapes) and undecodable bytes are shown as escapes.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )
