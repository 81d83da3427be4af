"""How kernel-install is configured (kernel-install(8), CONFIGURATION FILES)."""

from dataclasses import dataclass

from virtpass.host.facts import HostFacts

_FILES = tuple(f"{root}/kernel/install.conf" for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib"))


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that kernel-install is told.

    Attributes:
        value: without quotation marks; empty when nothing says anything.
        path: the file that says so.
        line: the line as it stands there.
    """

    value: str = ""
    path: str = ""
    line: str = ""


def setting(facts: HostFacts, name: str) -> Setting:
    """Return what kernel-install is told: ``layout`` or ``initrd_generator``.

    Of the files themselves the first one counts; the drop-ins of all directories come after it, in the order
    of their names, and the last value counts. A drop-in hides those of its name in later directories.

    So it is from systemd 256 on (its pull request 30480); kernel-install of 252 reads no drop-ins, and only
    the files in /etc and /usr/lib. Whoever is refused is told which file says so.
    """
    found = Setting()
    for path in _read(facts):
        for line in facts.text(path).splitlines():
            key, separator, value = line.strip().partition("=")
            if separator and key.strip() == name:
                found = Setting(value.strip().strip("\"'"), path, line.strip())
    return found


def _read(facts: HostFacts) -> list[str]:
    """Return the files that are read, in this order."""
    drop_ins = {
        name: f"{path}.d/{name}"
        for path in reversed(_FILES)
        for name in facts.host.names(f"{path}.d")
        if name.endswith(".conf")
    }
    return [path for path in _FILES if facts.has(path)][:1] + [drop_ins[name] for name in sorted(drop_ins)]
