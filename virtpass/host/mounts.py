"""Which file system a path lies on."""

from dataclasses import dataclass, replace

from virtpass.pci.usage import unescaped
from virtpass.system.host import Host


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system.

    Attributes:
        point: where it is mounted.
        kind: its type, such as "ext4".
        source: what is mounted, such as "/dev/vda2".
        options: its options.
    """

    point: str
    kind: str
    source: str
    options: tuple[str, ...]

    @property
    def is_stacked(self) -> bool:
        """Whether the kernel makes the device of others: LVM, encryption, RAID."""
        return self.source.startswith(("/dev/mapper/", "/dev/dm-", "/dev/md"))

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written."""
        return "ro" in self.options


def mounts(host: Host) -> list[Mount]:
    """Return what is mounted, in the order of mounting; empty where /proc is not there."""
    found = []
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        # Fields: id, parent, major:minor, root, mount point, options, tags ..., "-", type, source, options.
        head, _, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if len(fields) >= 6 and len(rest) >= 2:
            options = (*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ()))
            found.append(Mount(unescaped(fields[4]), rest[0], unescaped(rest[1]), options))
    return _below(host.root, found)


def _below(root: str, found: list[Mount]) -> list[Mount]:
    """Return what is mounted below another root, by the paths that are seen from there.

    /proc says what this process sees, also where it is looked at below that root.
    """
    inside = [mount for mount in found if root and f"{mount.point}/".startswith(f"{root}/")]
    return [replace(mount, point=mount.point.removeprefix(root) or "/") for mount in inside] or found


def mount_of(host: Host, path: str) -> Mount | None:
    """Return the file system that a path lies on; None when that is not known."""
    best = None
    for mount in mounts(host):
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        # Of two at the same place the later one covers the other.
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best
