"""Which bootloader keeps this host's kernel arguments: by evidence, and never by guessing."""

from collections.abc import Sequence

from virtpass.host.boot import Evidence, Loader
from virtpass.host.facts import HostFacts
from virtpass.system.errors import RefusedError, UsageError


def choose(
    facts: HostFacts, loaders: Sequence[Loader], wanted: str = "", arguments: Sequence[str] = ()
) -> Loader:
    """Return the loader of a host.

    Args:
        facts: the host.
        loaders: those that virtpass knows.
        wanted: the name that the user gave; empty for finding out.
        arguments: the kernel arguments that are missing, for whoever has to add them by hand.

    Raises:
        UsageError: there is no loader of that name.
        RefusedError: the evidence is none, or conflicting.
    """
    if wanted:
        return named(wanted, loaders)
    found = _found(facts, loaders)
    if not found:
        # To name one does not help: one of which there is nothing is refused.
        by_hand = f"; else add {' '.join(arguments)} to the kernel's command line by hand, and reboot"
        raise RefusedError(
            "no-bootloader",
            f"no bootloader that virtpass knows is on this host ({facts.distribution_name})",
            f"if its menu is on a partition that is not mounted, mount it{by_hand if arguments else ''}",
        )
    if len(found) == 1:
        return found[0][0]
    raise RefusedError(
        "ambiguous-bootloader",
        f"more than one bootloader seems to be in use: {_texts(found)}",
        f"say which with --bootloader, one of: {', '.join(loader.name for loader, _ in found)}",
    )


def named(name: str, loaders: Sequence[Loader]) -> Loader:
    """Return the loader of a name that the user gave.

    Raises:
        UsageError: there is none.
    """
    for loader in loaders:
        if loader.name == name:
            return loader
    names = ", ".join(loader.name for loader in loaders)
    raise UsageError("bootloader", f"virtpass knows no bootloader '{name}'", f"it knows {names}")


def _found(facts: HostFacts, loaders: Sequence[Loader]) -> list[tuple[Loader, Evidence]]:
    """Return those for which something speaks: not those that another one manages, or that did not boot."""
    seen = [(loader, one) for loader in loaders if (one := loader.evidence(facts))]
    replaced = {name for _, one in seen for name in one.replaces}
    seen = [(loader, one) for loader, one in seen if loader.name not in replaced]
    says = facts.loader.lower()
    if not says:
        return seen
    booted = [(loader, one) for loader, one in seen if one.booted_by and says.startswith(one.booted_by)]
    silent = [(loader, one) for loader, one in seen if not one.booted_by]
    if booted or silent:
        return booted or silent
    if not seen:
        return []
    raise RefusedError(
        "ambiguous-bootloader",
        f"{facts.loader} booted this host, but the files are those of another bootloader: {_texts(seen)}",
        f"say which with --bootloader, one of: {', '.join(loader.name for loader, _ in seen)}",
    )


def _texts(found: Sequence[tuple[Loader, Evidence]]) -> str:
    return "; ".join(f"{loader.title} ({one.text})" for loader, one in found)
