"""Lists of paths, as the programs print them that look into an initramfs."""

from virtpass.host.facts import HostFacts
from virtpass.system.commands import output_of

_DEADLINE = 300.0


def listing(facts: HostFacts, argv: tuple[str, ...]) -> str | None:
    """Return what a program prints about an image; None when it fails or is not there."""
    return output_of(facts.host, argv, _DEADLINE)


def plain_paths(text: str) -> frozenset[str]:
    """Parse one path on each line, such as lsinitramfs and lsinitcpio print them."""
    return frozenset(_relative(line) for line in text.split("\n") if line)


def long_paths(text: str) -> frozenset[str]:
    """Parse lines like those of ls -l, such as lsinitrd prints them; what else it prints names no path."""
    paths = set()
    for line in text.split("\n"):
        # Permissions, links, owner, group, size (or two numbers of a device), month, day, time or year, path.
        fields = line.split(None, 8)
        if len(fields) == 9 and len(fields[0]) >= 10 and fields[0][0] in "-dlcbps":
            path = fields[8].split(" -> ")[0]
            # Device nodes have one field more.
            paths.add(_relative(path.split(" ", 1)[1] if fields[0][0] in "cb" and " " in path else path))
    return frozenset(paths)


def has_module(content: frozenset[str], name: str) -> bool:
    """Tell whether an image has a module, whatever its compression; dashes and underscores are one."""
    return any(f"/{name}.ko" in f"/{path}".replace("-", "_") for path in content)


def _relative(path: str) -> str:
    return path.removeprefix("./").lstrip("/")
