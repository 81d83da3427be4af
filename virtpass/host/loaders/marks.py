"""What of virtpass is in kernel arguments: the words that mark its own boot entries, and all that it adds."""

from collections.abc import Sequence

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootRequest, Role


def own_role(found: Sequence[str]) -> Role | None:
    """Return what an entry with these arguments is for when it is one of virtpass's own; None for others."""
    if not tokens.missing((OFF,), tuple(found)):
        return Role.FALLBACK
    if not tokens.missing((TRIAL,), tuple(found)):
        return Role.TRIAL
    return None


def without_ours(found: Sequence[str], request: BootRequest) -> tuple[str, ...]:
    """Return kernel arguments as they are without virtpass.

    What is asked for and there already is ours from an earlier time: nobody asks for what the user has.
    """
    ours = (*request.present, *tokens.missing(request.arguments, request.present))
    return tokens.without(tuple(found), ours)
