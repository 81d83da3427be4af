"""Puts the hook where libvirt looks for it, and takes it away again.

One executable file, beside whatever else is in ``qemu.d``: libvirt runs every executable file there, hidden
ones and backups too. What it runs is a copy of the payload below /var/lib/virtpass, because a hook must not
depend on an environment that the user may change or remove, and AppArmor keeps libvirt's children from
running anything outside the system's own directories.
"""

import os
import stat
import subprocess
from dataclasses import dataclass

from virtpass.binding import nvidia
from virtpass.binding.journal import DIRECTORY as JOURNALS
from virtpass.binding.journal import journals, read_journal
from virtpass.hook.payload import sources, stamp
from virtpass.system.commands import environment
from virtpass.system.errors import FailedError, RefusedError, UnavailableError
from virtpass.system.host import Host
from virtpass.system.own_files import TEMPORARY
from virtpass.system.resources import directory

HOOKS = "/etc/libvirt/hooks"
HOOK_DIRECTORY = f"{HOOKS}/qemu.d"
HOOK_NAME = "50-virtpass"
HOOK = f"{HOOK_DIRECTORY}/{HOOK_NAME}"
PAYLOADS = "/var/lib/virtpass/hook"
INTERPRETER = "/usr/bin/python3"

# The directories that installing may have to make; those that it made are recorded, and removed again.
_STATE, _STATE_NAME = "/var/lib/virtpass", "made-directories"
_MADE = (HOOKS, HOOK_DIRECTORY)
_COMPILE_DEADLINE = 60


@dataclass(frozen=True, slots=True)
class HookStatus:
    """What is installed.

    Attributes:
        state: ``absent``, ``current``, ``outdated`` (another version of virtpass wrote it), ``changed``
            (somebody edited it, or others than root may), ``not-executable`` (libvirt does not see it) or
            ``incomplete`` (its payload is missing or differs, or others than root may write to it);
            ``unknown`` where this user may not look.
        path: the hook.
        version: the stamp in the installed hook, None when it is absent or has none.
        available: the stamp of the hook that this virtpass would install.
        others: other executable files that libvirt runs for each domain, in its order.
    """

    state: str
    path: str
    version: str | None
    available: str
    others: tuple[str, ...]

    @property
    def works(self) -> bool:
        """Whether libvirt, once it has looked, runs exactly what this virtpass would install."""
        return self.state == "current"


def rendered(modules: dict[str, bytes]) -> bytes:
    """Return the hook for one version of the payload."""
    version = stamp(modules)
    source = (directory("hooks") / HOOK_NAME).read_text(encoding="utf-8")
    return source.replace("@VERSION@", version).replace("@PAYLOAD@", f"{PAYLOADS}/{version}").encode()


def hook_status(host: Host) -> HookStatus:
    """Look at what is installed; needs no permission."""
    modules = sources()
    installed = host.read_bytes(HOOK)
    version = _version(installed) if installed is not None else None
    return HookStatus(_state(host, modules, installed, version), HOOK, version, stamp(modules), _others(host))


def _state(host: Host, modules: dict[str, bytes], installed: bytes | None, version: str | None) -> str:
    if installed is None:
        # Some distributions keep /etc/libvirt to root.
        return "unknown" if host.is_hidden(HOOK) else "absent"
    if installed != rendered(modules):
        return "changed" if version in (None, stamp(modules)) else "outdated"
    if not _is_executable(host, HOOK):
        return "not-executable"
    if not host.is_own(HOOK):
        return "changed"
    base = f"{PAYLOADS}/{version}"
    is_complete = all(
        host.read_bytes(f"{base}/virtpass/{path}") == content for path, content in modules.items()
    )
    return "current" if is_complete and _is_own_tree(host, base) else "incomplete"


def _is_own_tree(host: Host, path: str) -> bool:
    """Tell whether nobody but root may change anything below a directory, compiled modules included."""
    return host.is_own(path) and all(_is_own_tree(host, f"{path}/{name}") for name in host.names(path))


def _version(content: bytes) -> str | None:
    for line in content.decode("utf-8", "replace").splitlines()[:3]:
        if line.startswith("# virtpass hook "):
            return line.split(" ")[3]
    return None


def _others(host: Host) -> tuple[str, ...]:
    found = [f"{HOOKS}/qemu", *(f"{HOOK_DIRECTORY}/{name}" for name in host.names(HOOK_DIRECTORY))]
    return tuple(path for path in found if path != HOOK and _is_executable(host, path))


def _is_executable(host: Host, path: str) -> bool:
    try:
        mode = os.stat(host.path(path)).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & 0o111)


def install(host: Host) -> bool:
    """Write the payload, then the hook, then forget older payloads.

    Returns:
        whether anything changed. The daemon still has to be told (`virtpass.system.daemon`).

    Raises:
        UnavailableError: libvirt or the system's Python is not installed.
        VirtpassError: a directory is not safe or not writable; libvirt sees no half-written hook.
    """
    if not host.exists("/etc/libvirt"):
        raise UnavailableError(
            "no-libvirt", "libvirt is not installed: /etc/libvirt is missing", "install it first"
        )
    if not host.exists(INTERPRETER):
        raise UnavailableError(
            "no-python", f"{INTERPRETER} is missing, which runs the hook", "install python3"
        )
    modules = sources()
    status = hook_status(host)
    if status.works:
        return False
    base = f"{PAYLOADS}/{stamp(modules)}"
    # What is there under this name is incomplete, or somebody else's.
    _remove_tree(host, base)
    for path, content in modules.items():
        module = f"{base}/virtpass/{path}"
        host.replace_own(os.path.dirname(module), os.path.basename(module), content, 0o644)
    _compile(host, base)
    _record_made_directories(host)
    host.replace_own(HOOK_DIRECTORY, HOOK_NAME, rendered(modules), 0o755)
    # The payload that was in use until now stays once more: a hook that started with it may still need it.
    for name in host.names(PAYLOADS):
        if name not in (stamp(modules), status.version):
            _remove_tree(host, f"{PAYLOADS}/{name}")
    _sweep(host)
    return True


def uninstall(host: Host) -> bool:
    """Remove the hook and its payload, and the directories that installing made if nothing else is in them.

    Returns:
        whether there was anything.

    Raises:
        RefusedError: a domain has borrowed something that only the hook would give back.
    """
    if borrowers := journals(host):
        journal = read_journal(host, borrowers[0])
        name = journal.name if journal else borrowers[0]
        raise RefusedError(
            "lent", f"devices are lent to the domain {name}", f"shut it down first ({JOURNALS})"
        )
    nvidia.let_in(host)
    was_there = host.exists(HOOK) or bool(host.names(PAYLOADS))
    host.remove_own(HOOK_DIRECTORY, HOOK_NAME)
    _remove_tree(host, PAYLOADS)
    _sweep(host)
    made = (host.read_own(_STATE, _STATE_NAME) or b"").decode().split()
    for path in reversed(_MADE):
        if path in made:
            host.remove_directory(path)
    host.remove_own(_STATE, _STATE_NAME)
    host.remove_directory(_STATE)
    return was_there


def is_anything_left(host: Host) -> bool:
    """Tell whether there is anything that `uninstall` would remove."""
    return host.exists(HOOK) or host.exists(PAYLOADS) or host.exists(f"{_STATE}/{_STATE_NAME}")


def _sweep(host: Host) -> None:
    """Remove temporary files that a crash has left behind."""
    for path in (HOOKS, _STATE):
        for name in host.names(path):
            if name.startswith(TEMPORARY):
                host.remove_own(path, name)


def _record_made_directories(host: Host) -> None:
    missing = [path for path in _MADE if not host.exists(path)]
    if missing and host.read_own(_STATE, _STATE_NAME) is None:
        host.replace_own(_STATE, _STATE_NAME, ("\n".join(missing) + "\n").encode(), 0o644)


def _compile(host: Host, base: str) -> None:
    """Compile the payload with the Python that will run it; without, each start would take longer.

    Raises:
        FailedError: the system's Python cannot run it.
    """
    argv = [INTERPRETER, "-IS", "-m", "compileall", "-q", host.path(base)]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            timeout=_COMPILE_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedError("compile", f"{INTERPRETER} does not run: {error}") from error
    if done.returncode:
        text = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        raise FailedError(
            "compile",
            f"{INTERPRETER} cannot compile the hook: {text[:200]}",
            "Python 3.11 or later is needed",
        )


def _remove_tree(host: Host, path: str) -> None:
    """Remove a directory of our own with all that is in it."""
    for name in host.subdirectories(path):
        _remove_tree(host, f"{path}/{name}")
    for name in host.names(path):
        host.remove_own(path, name)
    host.remove_directory(path)
