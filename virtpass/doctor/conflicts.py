"""Checks for others who move the same devices, and for what an earlier run has left."""

from virtpass.binding import engine
from virtpass.binding.journal import journals, read_journal
from virtpass.binding.pools import Pool, count_of, page_sizes
from virtpass.doctor.check import Check, Finding, Verdict, passed
from virtpass.doctor.scene import Scene
from virtpass.pci import sysfs
from virtpass.system.errors import VirtpassError

_OURS = "virtpass.conf"
_DIRECTORIES = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d")
_DRIVERCTL = "/etc/driverctl.d"
_RULES = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_NVIDIA_UNITS = ("nvidia-persistenced.service", "nvidia-powerd.service")
_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
# Of units that run.
_RUNNING = "/sys/fs/cgroup/system.slice"


def _overrides(scene: Scene) -> list[Finding]:
    # libvirt sets it too, for a domain that virtpass does not look after, and clears it when that stops.
    ours = {*map(str, _lent(scene)), *scene.outside.bound_early, *scene.outside.in_use}
    found = []
    for device in scene.inventory.devices.values():
        try:
            override = engine.override(scene.host, device.address)
        except VirtpassError as error:
            found.append(Finding(Verdict.FAIL, error.what, error.remedy, str(device.address)))
            continue
        if override is None or str(device.address) in ours:
            continue
        what = f"driver_override is {override}, which virtpass has not set"
        if scene.host.exists(f"{_DRIVERCTL}/{device.address}"):
            what, fix = f"{what}; driverctl does", f"sudo driverctl unset-override {device.address}"
        elif device.driver == "vfio-pci":
            fix = f"sudo virtpass device reattach {device.address}"
        else:
            # libvirt writes nothing for a device that is with the host already.
            fix = f"echo | sudo tee {sysfs.device_path(device.address)}/driver_override"
        found.append(Finding(Verdict.WARN, what, fix, str(device.address)))
    return found or [passed("no device has a driver_override of somebody else")]


def _lent(scene: Scene) -> list[object]:
    found: list[object] = []
    for uuid in journals(scene.host):
        try:
            journal = read_journal(scene.host, uuid)
        except VirtpassError:
            continue
        found += [home.address for home in journal.homes] if journal else []
    return found


def _driverctl(scene: Scene) -> list[Finding]:
    found = []
    for name in scene.host.names(_DRIVERCTL):
        if not sysfs.parsed([name]):
            continue
        driver = scene.host.read(f"{_DRIVERCTL}/{name}") or "another driver"
        what = f"driverctl binds it to {driver} at boot, where virtpass would when a domain starts"
        found.append(Finding(Verdict.WARN, what, f"sudo driverctl unset-override {name}", name))
    return found or [passed("driverctl binds no device at boot")]


def _ids(scene: Scene) -> list[Finding]:
    found = [
        Finding(
            Verdict.WARN,
            f"the kernel runs with {token}: all devices with these ids are taken at boot",
            "take that argument away; sudo virtpass setup --bind binds one card by its address",
        )
        for token in scene.facts.running
        if token.replace("_", "-").startswith(("vfio-pci.ids=", "pci-stub.ids="))
        and token not in scene.outside.applied
    ]
    for directory in _DIRECTORIES:
        for name in scene.host.names(directory):
            if name == _OURS or not name.endswith(".conf"):
                continue
            for line in (scene.host.read(f"{directory}/{name}") or "").splitlines():
                words = line.replace("_", "-").split()
                if words[:2] == ["options", "vfio-pci"] and any(word.startswith("ids=") for word in words):
                    what = f"{directory}/{name} lets vfio-pci take all devices with these ids: {line.strip()}"
                    fix = "remove that line; sudo virtpass setup --bind binds one card by its address"
                    found.append(Finding(Verdict.WARN, what, fix, name))
    return found or [passed("vfio-pci takes no device by its ids")]


def _nvidia(scene: Scene) -> list[Finding]:
    bound = [card for card in scene.cards if card.driver == sysfs.NVIDIA]
    if not bound:
        return [passed("no card is bound to NVIDIA's own driver")]
    units = [unit for unit in _NVIDIA_UNITS if any(scene.host.exists(f"{base}/{unit}") for base in _UNITS)]
    rules = [
        f"{base}/{name}"
        for base in _RULES
        for name in scene.host.names(base)
        if "nvidia" in name and "modprobe" in (scene.host.read(f"{base}/{name}") or "")
    ]
    running = [unit for unit in units if scene.host.exists(f"{_RUNNING}/{unit}")]
    more = f"; {', '.join(running)} {'keeps' if len(running) == 1 else 'keep'} it in use" if running else ""
    more += f"; loaded again by {', '.join(rules)}" if rules else ""
    found = []
    for card in bound:
        about = str(card.address)
        what = f"it is bound to nvidia, which virtpass takes away only by unloading its modules{more}"
        if fix := scene.outside.to_hand_over(about):
            domain = scene.outside.word(*scene.outside.lacking(about))
            fix = f"{fix}; virtpass hook rehearse {domain} shows the steps"
            found.append(Finding(Verdict.WARN, what, fix, about))
        else:
            found.append(passed(f"{what}; the domain that has it lets them be unloaded", about))
    return found


def _stuck(scene: Scene) -> list[Finding]:
    return [
        Finding(Verdict.FAIL, "its driver hangs, and it is not touched until then", "reboot the host", name)
        for name in scene.host.names(engine.STUCK_DIRECTORY)
    ] or [passed("no driver hangs")]


def _unfinished(scene: Scene) -> list[Finding]:
    running = scene.outside.running
    found = []
    for uuid in journals(scene.host):
        if running is not None and uuid in running:
            continue
        try:
            journal = read_journal(scene.host, uuid)
        except VirtpassError as error:
            found.append(Finding(Verdict.UNKNOWN, error.what, error.remedy, uuid))
            continue
        if journal is None:
            continue
        devices = ", ".join(str(home.address) for home in journal.homes)
        if running is None:
            what = f"{devices} lent to {journal.name}; whether that runs is not known"
            found.append(Finding(Verdict.UNKNOWN, what, "sudo virtpass doctor"))
        else:
            what = f"{devices} lent to {journal.name}, which does not run"
            found.append(Finding(Verdict.FAIL, what, "sudo virtpass recover"))
    return found or [passed("nothing is lent to a domain that does not run")]


def _domains(scene: Scene) -> list[Finding]:
    found: list[Finding] = []
    fix = "if it has moved: find it in virtpass devices, virtpass domain attach it there, then detach it here"
    found += [Finding(Verdict.FAIL, what, fix, name) for name, what in scene.outside.misplaced]
    if scene.outside.running is None:
        return [Finding(Verdict.UNKNOWN, "libvirt does not answer")]
    return found or [passed("each domain's devices are where its definition says")]


def _unadopted(scene: Scene) -> list[Finding]:
    outside = scene.outside
    found = []
    for uuid, *addresses in outside.unrecorded:
        fix = f"virtpass domain adopt {outside.word(uuid)}"
        about = dict(outside.names).get(uuid, uuid)
        devices = ", ".join(addresses)
        bound = [
            str(one.address)
            for one in scene.inventory.devices.values()
            if str(one.address) in addresses and one.driver == sysfs.NVIDIA
        ]
        if uuid in outside.ours:
            what = f"not on record: {devices}; should another device be there one day, that would go instead"
            found.append(Finding(Verdict.WARN, what, fix, about))
        elif bound:
            what = (
                f"virtpass does not look after {devices}: at its start libvirt unbinds {', '.join(bound)}"
                " from nvidia, which may hang for ever, and the daemon with it"
            )
            found.append(Finding(Verdict.FAIL, what, fix, about))
        else:
            what = f"virtpass does not look after {devices}: at its start nothing is checked"
            found.append(Finding(Verdict.WARN, what, fix, about))
    if outside.running is None:
        return [Finding(Verdict.UNKNOWN, "libvirt does not answer")]
    return found or [passed("virtpass looks after the devices of all domains")]


def _huge_pages(scene: Scene) -> list[Finding]:
    found = []
    # /proc/meminfo has the usual size only.
    for size in page_sizes(scene.host):
        pool = Pool(size, None)
        total, free = (count_of(scene.host, pool, name) for name in ("nr", "free"))
        pages = f"{total} huge pages of {pool}"
        if total and total == free:
            what = f"{pages} are set aside, and nobody uses one"
            fix = "virtpass domain policy DOMAIN huge-pages=yes makes them when a domain starts"
            found.append(Finding(Verdict.WARN, what, fix))
        else:
            found.append(passed(f"{pages}, {free} of them free"))
    return found or [Finding(Verdict.UNKNOWN, "the kernel tells nothing of huge pages")]


CHECKS = (
    Check(
        "driver-override",
        "devices that somebody else has set aside",
        "driver_override decides which driver may take a device. One that virtpass has not set stays when a"
        " guest stops, so the device may not come back to its driver.",
        _overrides,
    ),
    Check(
        "driverctl",
        "driverctl's settings",
        "driverctl gives devices to drivers at boot, by address. A card that it binds to vfio-pci is not"
        " there for the host, whatever virtpass would do.",
        _driverctl,
    ),
    Check(
        "vfio-ids",
        "devices taken by their ids",
        "ids= takes every device of that model: two equal cards, or a controller that the host boots from.",
        _ids,
    ),
    Check(
        "nvidia",
        "NVIDIA's own driver",
        "Unbinding it while anything uses it hangs for ever. Its daemons and rules keep it in use, or load it"
        " again; it goes only as a whole.",
        _nvidia,
    ),
    Check(
        "stuck",
        "drivers that hang",
        "A driver that does not let go of its device cannot be interrupted. virtpass marks the device, and"
        " leaves it alone until the host is rebooted.",
        _stuck,
    ),
    Check(
        "unfinished",
        "devices that did not come back",
        "What was lent to a domain comes back when it stops. A crash in between leaves a record, from which"
        " everything can be brought back.",
        _unfinished,
    ),
    Check(
        "domain-devices",
        "devices of the domains",
        "Addresses change when cards are added or moved. A domain whose device is not where it was does not"
        " start, or, worse, would start with another one.",
        _domains,
    ),
    Check(
        "unadopted",
        "devices that virtpass does not look after",
        "A domain that virtpass has not been told of (its devices were added in virt-manager, or it was"
        " defined from an old file) starts without a check: libvirt takes the devices whatever uses them."
        " Of a device that is not on record nobody would notice that it has moved.",
        _unadopted,
    ),
    Check(
        "huge-pages",
        "huge pages",
        "Pages that are set aside are lost to the host, whether a guest uses them or not.",
        _huge_pages,
    ),
)
