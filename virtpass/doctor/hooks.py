"""Checks of the hook, and of the daemon that calls it."""

import shlex

from virtpass.binding import steps
from virtpass.binding.effects import STEPS_DIRECTORY
from virtpass.doctor import apparmor
from virtpass.doctor.check import Check, Finding, Verdict, passed
from virtpass.doctor.scene import Scene
from virtpass.hook.install import HOOK, HOOKS, INTERPRETER
from virtpass.system.daemon_start import how_to_start
from virtpass.system.errors import VirtpassError

HOOK_STATES = {
    "absent": "the hook is not installed",
    "outdated": "another version of virtpass has installed the hook",
    "changed": "the hook was changed since it was installed, or others than root may write to it",
    "not-executable": "the hook is not executable, so libvirt does not run it",
    "incomplete": "what the hook runs is missing or changed",
    "unknown": "whether the hook is installed cannot be told without root",
}
INSTALL = "sudo virtpass hook install"
_BACKUPS = ("~", ".bak", ".orig", ".old", ".save", ".rpmsave", ".rpmnew", ".dpkg-old", ".dpkg-dist", ".swp")
_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_PROFILES = {
    "libvirtd.service": "/etc/apparmor.d/usr.sbin.libvirtd",
    "virtqemud.service": "/etc/apparmor.d/usr.sbin.virtqemud",
}
_KINDS = {"libvirtd.service": "one daemon for everything", "virtqemud.service": "a daemon for QEMU alone"}
_SELINUX = "/sys/fs/selinux/enforce"
_UNCONFINED = "/sys/fs/selinux/booleans/virt_hooks_unconfined"
_HOOK_TYPE = "virt_hook_t"


def _installed(scene: Scene) -> list[Finding]:
    hook = scene.hook
    if hook.works:
        return [passed(f"{hook.path}, {hook.version}")]
    if hook.state == "unknown":
        return [Finding(Verdict.UNKNOWN, HOOK_STATES[hook.state])]
    return [Finding(Verdict.FAIL, HOOK_STATES[hook.state], INSTALL)]


def _known(scene: Scene) -> list[Finding]:
    outside = scene.outside
    if outside.hook_written is None:
        return [Finding(Verdict.UNKNOWN, "there is no hook to be known")]
    if not outside.daemon and not outside.libvirt_version:
        return [passed("no daemon runs now; it looks for hooks when it starts")]
    if outside.daemon_looked is None:
        unit = outside.daemon or "the daemon"
        return [Finding(Verdict.UNKNOWN, f"when {unit} last looked for hooks is not known")]
    if outside.misses_hook:
        # It remembers whether there was any hook at all, not which ones.
        what = f"the hook was written after {outside.daemon} last looked for hooks, and it may not be called"
        return [Finding(Verdict.WARN, what, f"sudo systemctl reload {shlex.quote(outside.daemon)}")]
    return [passed(f"{outside.daemon} has looked for hooks since it was written")]


def _runnable(scene: Scene) -> list[Finding]:
    found = []
    if not scene.host.exists(INTERPRETER):
        what = f"there is no {INTERPRETER}, with which the hook runs"
        found.append(Finding(Verdict.FAIL, what, "install the distribution's python3"))
    found += _under_apparmor(scene)
    found += _under_selinux(scene)
    return found or [passed(f"{INTERPRETER} is there, and no security module is in the way")]


def _under_apparmor(scene: Scene) -> list[Finding]:
    """Tell what confines the daemon, and so the hook; it is judged by the files of the profiles."""
    if scene.host.read(_APPARMOR) != "Y":
        return []
    unit, label = scene.outside.daemon, scene.outside.daemon_label
    if label and not label.endswith("(enforce)"):
        return [passed(f"AppArmor lets hooks run: {unit} is {label}")]
    profiles = [
        profile
        for one, path in _PROFILES.items()
        if unit in (one, "")
        and not scene.host.exists(f"{apparmor.DIRECTORY}/disable/{path.rpartition('/')[2]}")
        and (profile := apparmor.read_profile(scene.host, path))
    ]
    if label and not profiles:
        what = f"AppArmor confines {unit} ({label}), and its profile is not where it is looked for"
        return [Finding(Verdict.UNKNOWN, what, "sudo journalctl -k -g DENIED")]
    python = scene.host.real_path(INTERPRETER)
    return [_under_profile(profile, python) for profile in profiles]


def _under_profile(profile: apparmor.Profile, python: str) -> Finding:
    """Tell whether a profile lets run what the hook is, and what it runs."""
    load = f"sudo apparmor_parser -r {profile.path}"
    # The modes are those of libvirt's own profile: run within it, and with a profile of its own or with none.
    for target, rule in ((HOOK, f"{HOOKS}/** rmix,"), (python, f"{python} PUx,")):
        answer, found = profile.execution(target)
        if answer is apparmor.Answer.ALLOWED:
            continue
        if found is not None:
            what = f"the AppArmor profile {profile.path} forbids the hook: {found.text} in {found.source}"
            return Finding(Verdict.FAIL, what, f"take that rule out of {found.source}, then: {load}")
        what = f"the AppArmor profile {profile.path} has no rule to run {target}"
        if answer is apparmor.Answer.UNKNOWN:
            what = f"{what} in what can be read of it"
            return Finding(Verdict.UNKNOWN, what, "sudo journalctl -k -g DENIED")
        if profile.has_local:
            fix = f"echo '{rule}' | sudo tee -a {profile.local} && {load}"
        else:
            fix = f"add the rule {rule} to it, then: {load}"
        return Finding(Verdict.FAIL, what, fix)
    return passed(f"the AppArmor profile {profile.path} lets the hook run")


def _under_selinux(scene: Scene) -> list[Finding]:
    if scene.host.read(_SELINUX) != "1" or scene.outside.hook_written is None:
        return []
    found = []
    label = scene.outside.hook_label
    kind = label.split(":")[2] if label.count(":") >= 2 else ""
    if not kind:
        what = "the SELinux label of the hook cannot be read"
        found.append(Finding(Verdict.UNKNOWN, what, "sudo restorecon -Rv /etc/libvirt/hooks"))
    elif kind != _HOOK_TYPE:
        what = f"the hook is labelled {kind}, not {_HOOK_TYPE}"
        found.append(Finding(Verdict.FAIL, what, "sudo restorecon -Rv /etc/libvirt/hooks"))
    switch = scene.host.read(_UNCONFINED)
    if switch is not None and not switch.startswith("1"):
        what = "SELinux confines hooks (virt_hooks_unconfined is off): the hook cannot write to sysfs"
        found.append(Finding(Verdict.FAIL, what, "sudo setsebool -P virt_hooks_unconfined on"))
    if not found and scene.outside.daemon.startswith("virtqemud"):
        # The boolean's rules name other daemons; whether this one may differs between releases of the policy.
        what = "SELinux is enforcing, and whether it lets virtqemud run hooks is not known"
        found.append(
            Finding(Verdict.UNKNOWN, what, "start a domain, then: sudo ausearch -m AVC -c rpc-virtqemud")
        )
    return found or [passed("SELinux lets the hook work")]


def _others(scene: Scene) -> list[Finding]:
    found = []
    for path in scene.hook.others:
        if path.endswith(_BACKUPS) or path.rpartition("/")[2].startswith("."):
            what = f"{path} looks like a backup, and libvirt runs it at every start and stop"
            found.append(Finding(Verdict.WARN, what, f"sudo chmod -x {shlex.quote(path)}", path))
        else:
            what = f"{path} runs at every start and stop too"
            fix = "see that it does not move the same devices: virtpass does that now"
            found.append(Finding(Verdict.WARN, what, fix, path))
    return found or [passed("libvirt runs no other hook for domains")]


def _daemon(scene: Scene) -> list[Finding]:
    outside = scene.outside
    if outside.libvirt_version and outside.libvirt_is_of_session:
        what = "this connection leads to a user's own libvirt, which cannot give devices away"
        return [Finding(Verdict.FAIL, what, "virtpass doctor --connect qemu:///system")]
    if outside.libvirt_version:
        kind = (
            f"{outside.daemon}, {_KINDS[outside.daemon]}" if outside.daemon in _KINDS else "started on demand"
        )
        return [passed(f"libvirt {outside.libvirt_version} answers ({kind})")]
    if outside.libvirt_refuses:
        what = f"libvirt does not answer this user: {outside.libvirt_problem}"
        return [Finding(Verdict.UNKNOWN, what, "sudo virtpass doctor")]
    what = f"libvirt does not answer: {outside.libvirt_problem}"
    return [Finding(Verdict.FAIL, what, outside.libvirt_remedy or how_to_start(scene.host))]


def _member(scene: Scene) -> list[Finding]:
    outside = scene.outside
    if outside.is_root and outside.user in ("root", ""):
        return [passed("root looks, who may everything")]
    if "libvirt" in outside.groups:
        return [passed(f"{outside.user} is in the group libvirt")]
    if not outside.user:
        return [Finding(Verdict.UNKNOWN, "this user has no name")]
    what = f"{outside.user} is not in the group libvirt: virt-manager asks for a password"
    fix = f"sudo usermod -aG libvirt {shlex.quote(outside.user)} # then log in anew"
    return [Finding(Verdict.WARN, what, fix)]


def _locked_memory(scene: Scene) -> list[Finding]:
    process = scene.outside.daemon_process
    if process is None and scene.outside.libvirt_version:
        return [Finding(Verdict.UNKNOWN, "the daemon's process is not known")]
    if process is None:
        return [passed("no daemon runs now; as a system service it may lock all memory")]
    text = scene.host.read(f"/proc/{process}/limits")
    line = next((one for one in (text or "").splitlines() if one.startswith("Max locked memory")), "")
    fields = line.split()
    if len(fields) < 5:
        return [Finding(Verdict.UNKNOWN, f"the limits of {scene.outside.daemon} cannot be read")]
    capable = _capabilities(scene.host.read(f"/proc/{process}/status") or "")
    if fields[4] == "unlimited" or capable:
        return [passed(f"{scene.outside.daemon} may let guests lock their memory")]
    what = f"{scene.outside.daemon} may let guests lock {fields[4]} bytes, and a device locks all of theirs"
    return [Finding(Verdict.FAIL, what, "let it run as a system service with CAP_SYS_RESOURCE")]


def _capabilities(status: str) -> bool:
    """Tell whether a process may raise limits (CAP_SYS_RESOURCE, bit 24)."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            try:
                return bool(int(line.split()[1], 16) & 1 << 24)
            except (ValueError, IndexError):
                return False
    return False


def _steps(scene: Scene) -> list[Finding]:
    host = scene.host
    found = []
    try:
        steps.refuse_unsafe(host)
    except VirtpassError as error:
        what = f"{error.what}, so no domain starts"
        found.append(Finding(Verdict.FAIL, what, error.remedy))
    events = [f"{event}.d" for event in (steps.PREPARE, steps.RELEASE)]
    for name in host.names(STEPS_DIRECTORY):
        # What is in a directory of another name looks as if it ran.
        if name not in events and host.names(f"{STEPS_DIRECTORY}/{name}"):
            what = f"{STEPS_DIRECTORY}/{name} is for no event, and nothing in it runs"
            found.append(Finding(Verdict.WARN, what, f"programs go into {' and '.join(events)}"))
    if found:
        return found
    there = [path for event in (steps.PREPARE, steps.RELEASE) for path in steps.programs(host, event)]
    return [passed(", ".join(there) or "there are none")]


CHECKS = (
    Check(
        "libvirt",
        "the libvirt daemon",
        "Domains live in libvirt's system daemon, as virt-manager's qemu:///system. A session daemon cannot"
        " give devices away.",
        _daemon,
    ),
    Check(
        "libvirt-group",
        "who may use libvirt",
        "Members of the group libvirt manage domains without a password. It is as good as root.",
        _member,
    ),
    Check(
        "locked-memory",
        "memory that guests may lock",
        "A device writes to the guest's memory whenever it likes, so all of it has to stay where it is."
        " libvirt raises the limit, if it may.",
        _locked_memory,
    ),
    Check(
        "hook",
        "the hook",
        "libvirt calls the hook at each start and stop of a domain: that is when the card changes hands."
        " Without it libvirt moves the devices itself, and none of virtpass' checks is made.",
        _installed,
    ),
    Check(
        "hook-known",
        "whether the daemon calls the hook",
        "The daemon remembers whether there were any hooks when it started or was reloaded. A hook that came"
        " later is not called.",
        _known,
    ),
    Check(
        "hook-runs",
        "whether the hook may run",
        "The hook runs confined as the daemon is: AppArmor and SELinux decide what it may execute and write.",
        _runnable,
    ),
    Check(
        "hook-others",
        "other hooks",
        "libvirt runs every executable file in its hook directories, hidden files and backups of editors too."
        " One that unbinds devices or stops the desktop works against virtpass, and may hang the daemon.",
        _others,
    ),
    Check(
        "steps",
        "steps of your own",
        "Programs in /etc/virtpass/hooks.d run as root when a domain borrows devices and when they are back,"
        " provided that root alone can change them.",
        _steps,
    ),
)
