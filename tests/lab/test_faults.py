"""Drivers that misbehave: what a hand-over makes of them, and what of the host is the same afterwards.

The drivers are the lab's own (`faulty/`), for QEMU's edu device, which no driver of Linux knows.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import topology
from .desktop import ORANGE
from .guest import Guest
from .killed import NEVER, accesses, killed
from .machine import Machine, Result
from .virtpass import journals, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# The bridge's devices go together, and another one with them.
EDU, NEIGHBOUR, NIC, CARD = topology.BRIDGED_OTHER, topology.BRIDGED_NIC, topology.NIC, topology.CARD
LENT = ("vfio-pci", "vfio-pci")
PARAMETERS = "/sys/module/{module}/parameters/{name}"
STUCK = f"/run/virtpass/stuck/{EDU}"
# What virtpass gives a driver, and what the rest of a start may take here.
DEADLINE, REST = 30.0, 40.0
# And what giving the others back may take, the desktop among them.
GIVING_BACK = 20.0
# Sooner than the hook gives a driver up, also on cores that have five other machines to run.
PROMPTLY = 25.0

# Rules of udev without an ACTION, so that they hold when a module goes too.
LOADING, MODPROBE = "/run/udev/rules.d/60-nvidia.rules", "/etc/modprobe.d/nvidia.conf"
RULES = "".join(
    f'KERNEL=="{name}", SUBSYSTEM=="module", RUN+="/sbin/modprobe {name}"\n'
    for name in ("nvidia", "nvidia_modeset")
)
LOAD, LOADS = "/run/load-nvidia", "/run/nvidia-loads"
LOADER = f"""#!/bin/sh
echo once >> {LOADS}
modprobe --ignore-install nvidia || exit 1
[ -e /sys/bus/pci/drivers/nvidia/{EDU} ] && exit 0
rmmod nvidia
exit 1
"""

State = dict[str, tuple[str, str]]


@contextmanager
def loaded(machine: Machine, *modules: str) -> Iterator[State]:
    """Load modules of the lab, and unload them; yield drivers and overrides of the host in between.

    These have to be as before at the end, with nothing on record.
    """
    machine.run(["modprobe", "-a", *modules]).check()
    assert machine.driver(EDU) == modules[0]
    state = machine.state()
    yield state
    machine.wait_until(lambda: machine.state() == state, "every driver and override is as before")
    assert journals(machine) == []
    machine.run(["modprobe", "-r", *reversed(modules)]).check()


@pytest.fixture
def faulty(desktop: Machine) -> Iterator[State]:
    """The device with a driver that misbehaves when it is told; the host's state."""
    with loaded(desktop, "faulty") as state:
        yield state
        tell(desktop, "mode", "prompt")


@pytest.fixture
def nvidia(desktop: Machine) -> Iterator[State]:
    """The device with a driver that is used as NVIDIA's is; the host's state."""
    with loaded(desktop, "nvidia", "nvidia_modeset") as state:
        yield state


def tell(machine: Machine, name: str, value: object, module: str = "faulty") -> None:
    """Set a parameter of a module."""
    write(machine, PARAMETERS.format(module=module, name=name), str(value))


def write(machine: Machine, attribute: str, value: str) -> None:
    """Write an attribute of sysfs."""
    machine.run(["dd", f"of={attribute}", "status=none"], f"{value}\n".encode()).check()


def give(guest: Guest, *addresses: str, display: str = "refuse") -> None:
    """Attach devices to the domain, with this policy."""
    virtpass(guest.machine, "domain", "attach", guest.name, *addresses).check()
    virtpass(guest.machine, "domain", "policy", guest.name, f"display={display}").check()


def drivers(machine: Machine) -> dict[str, str]:
    """Return all drivers without asking for overrides: that would wait for a driver that hangs."""
    script = 'cd /sys/bus/pci/devices && for one in *; do echo "$one" "$(readlink "$one/driver")"; done'
    lines = machine.run(["sh", "-c", script]).check().text.splitlines()
    return {address: link.rpartition("/")[2] for address, _, link in (line.partition(" ") for line in lines)}


def override(machine: Machine, address: str) -> str:
    """Return the override of a device as the kernel spells it."""
    return machine.get(f"/sys/bus/pci/devices/{address}/driver_override").decode().strip()


def modules(machine: Machine) -> list[str]:
    """Return those of NVIDIA's modules that are loaded."""
    return machine.run(["sh", "-c", "cd /sys/module && ls -d nvidia*"]).text.split()


def kernel_log(machine: Machine) -> str:
    """Return what the kernel has said since the boot."""
    return machine.run(["dmesg"]).check().text


def units(machine: Machine, state: str) -> list[str]:
    """Return the units in a state."""
    listed = machine.run(["systemctl", "list-units", f"--state={state}", "--no-legend", "--plain"]).check()
    return [line.split()[0] for line in listed.text.splitlines()]


def home(state: State) -> dict[str, str]:
    """Return the drivers of a state."""
    return {address: driver for address, (driver, _) in state.items()}


def promptly(machine: Machine, *argv: str) -> Result:
    """Run a command that has to end within seconds."""
    began = time.monotonic()
    result = machine.run(argv, timeout=120)
    seconds = time.monotonic() - began
    assert seconds < PROMPTLY, f"{seconds:.1f} s: {result}"
    return result


@contextmanager
def hanging(machine: Machine) -> Iterator[None]:
    """Let the driver's remove function hang, and do in the end what a reboot would.

    The driver is rid of the device then; mark and record lie in /run.
    """
    tell(machine, "mode", "hang")
    try:
        yield
    finally:
        tell(machine, "mode", "prompt")
        machine.run(["rm", "-rf", "/run/virtpass/stuck", "/run/virtpass/lent"]).check()
        # It waits until the driver has let go.
        write(machine, f"/sys/bus/pci/devices/{EDU}/driver_override", "")
        write(machine, "/sys/bus/pci/drivers_probe", EDU)


@pytest.fixture
def other(desktop: Machine) -> Iterator[Guest]:
    """Another domain."""
    guest = Guest(desktop, "other")
    guest.define()
    yield guest
    guest.remove()


@pytest.fixture
def session(desktop: Machine) -> Iterator[None]:
    """A desktop on the card's monitor."""
    desktop.run(["systemctl", "start", "lightdm"], timeout=120).check()
    desktop.wait_until(lambda: is_seen(desktop), "the desktop is on the monitor", 90)
    yield
    desktop.run(["systemctl", "stop", "lightdm"], timeout=120).check()


def is_seen(machine: Machine) -> bool:
    """Return whether the monitor shows the desktop."""
    return machine.picture().share(ORANGE) > 0.9


@pytest.mark.usefixtures("session", "other")
def test_a_driver_that_never_comes_back_costs_its_device_only(
    desktop: Machine, desktop_guest: Guest, faulty: State
) -> None:
    before, failed_units = drivers(desktop), units(desktop, "failed")
    give(desktop_guest, CARD, NIC, NEIGHBOUR, EDU, display="hand-over")
    with hanging(desktop):
        began = time.monotonic()
        start = desktop.begin(["virsh", "start", "guest"], timeout=180)
        desktop.wait_until(lambda: f"{EDU}: remove: hang" in kernel_log(desktop), "the driver hangs")
        assert drivers(desktop)[CARD] == "vfio-pci"
        # libvirt has the domain locked during its hook, and a list waits for all domains: so long only.
        asked = time.monotonic()
        listed = desktop.begin(["virsh", "list", "--all"])
        promptly(desktop, "virsh", "version").check()
        promptly(desktop, "virsh", "domstate", "other").check()
        listed.wait().check()
        assert time.monotonic() - asked < DEADLINE + GIVING_BACK
        failed = start.wait()
        assert failed.status != 0
        assert f"virtpass: {EDU}: unbind faulty does not come back from the driver; reboot the host" in (
            failed.error_text
        )
        assert time.monotonic() - began < DEADLINE + REST

        # It alone is not what it was: the kernel takes the link away before it calls remove.
        left = before | {EDU: ""}
        assert desktop.get(STUCK) == b"unbind\n"
        assert drivers(desktop) == left
        for address, (_, wanted) in faulty.items():
            if address != EDU:
                assert override(desktop, address) == (wanted or "(null)")
        desktop.wait_until(lambda: is_seen(desktop), "the desktop is back", 90)
        assert units(desktop, "failed") == failed_units

        promptly(desktop, "virsh", "list", "--all").check()
        promptly(desktop, "virtpass", "devices").check()
        again = promptly(desktop, "virsh", "start", "guest")
        assert again.status != 0
        assert f"a driver hangs with {EDU}, which stays as it is until the next boot" in again.error_text
        for argv in (["virtpass", "recover", "--dry-run"], ["virtpass", "recover"]):
            recovered = promptly(desktop, *argv)
            assert recovered.status != 0
            assert f"a driver hangs with {EDU}" in recovered.text + recovered.error_text
        assert drivers(desktop) == left
        assert is_seen(desktop)


def test_a_driver_that_takes_its_time_is_waited_for(
    desktop: Machine, desktop_guest: Guest, faulty: State
) -> None:
    give(desktop_guest, NEIGHBOUR, EDU)
    tell(desktop, "seconds", 5)
    tell(desktop, "mode", "slow")
    began = time.monotonic()
    desktop_guest.start().check()
    assert time.monotonic() - began > 5
    assert desktop.state() == faulty | {EDU: LENT, NEIGHBOUR: LENT}
    assert "1234:11e8" in {device.ids for device in desktop_guest.wait_ready().values()}
    desktop_guest.shutdown()
    desktop.wait_until(lambda: desktop.state() == faulty, "the devices are back")


def test_recover_brings_back_what_a_driver_refused_at_first(
    desktop: Machine, desktop_guest: Guest, faulty: State
) -> None:
    give(desktop_guest, NIC, NEIGHBOUR, EDU)
    desktop_guest.start().check()
    tell(desktop, "times", 1)
    tell(desktop, "mode", "failing")
    desktop_guest.destroy()
    # The others do not wait for it.
    desktop.wait_until(lambda: drivers(desktop) == {**home(faulty), EDU: ""}, "all but one are back")
    assert len(journals(desktop)) == 1
    log = desktop.run(["journalctl", "--no-pager", "-t", "virtpass-hook"]).text
    assert f"{EDU} could not be bound to faulty: no driver took it" in log
    planned = virtpass(desktop, "recover", "--dry-run").check()
    assert f"{EDU}: let faulty bind it" in planned.text
    virtpass(desktop, "recover").check()
    assert desktop.state() == faulty


def test_a_start_brings_it_back_too_before_it_lends_it_again(
    desktop: Machine, desktop_guest: Guest, faulty: State
) -> None:
    give(desktop_guest, NEIGHBOUR, EDU)
    desktop_guest.start().check()
    tell(desktop, "times", 1)
    tell(desktop, "mode", "failing")
    desktop_guest.destroy()
    desktop.wait_until(lambda: drivers(desktop)[EDU] == "", "the driver has refused it")
    desktop_guest.start().check()
    assert drivers(desktop)[EDU] == "vfio-pci"
    desktop_guest.destroy()
    desktop.wait_until(lambda: desktop.state() == faulty, "the devices are back")


def test_nvidia_is_unloaded_in_order_and_loaded_again(
    desktop: Machine, desktop_guest: Guest, nvidia: State
) -> None:
    give(desktop_guest, NEIGHBOUR, EDU)
    refused = desktop_guest.start()
    assert refused.status != 0
    assert f"{EDU} is bound to nvidia, which may hang for ever when it is unbound" in refused.error_text
    assert desktop.state() == nvidia

    virtpass(desktop, "domain", "policy", "guest", "display=hand-over").check()
    with updated_kernel(desktop):
        refused = desktop_guest.start()
        assert refused.status != 0
        assert "modprobe would not load all of nvidia_modeset, nvidia again" in refused.error_text
        assert "if the kernel was updated since the last boot, reboot the host" in refused.error_text
        assert (desktop.state(), modules(desktop)) == (nvidia, ["nvidia", "nvidia_modeset"])

    desktop_guest.start().check()
    assert desktop.state() == nvidia | {EDU: LENT, NEIGHBOUR: LENT}
    assert modules(desktop) == []
    assert "remove waits for" not in kernel_log(desktop)
    desktop_guest.destroy()
    desktop.wait_until(lambda: desktop.state() == nvidia, "the devices are back")
    desktop.wait_until(lambda: modules(desktop) == ["nvidia", "nvidia_modeset"], "both modules are back", 10)


@contextmanager
def updated_kernel(machine: Machine) -> Iterator[None]:
    """Have no modules of the kernel that runs, as where an update has replaced it; vfio-pci is loaded.

    Those of NVIDIA have install lines meanwhile, as on Debian, of which a dry run says nothing.
    """
    machine.run(["modprobe", "-a", "vfio-pci", "vfio_iommu_type1"]).check()
    lines = "/run/modprobe.d/lab-install.conf"
    machine.run(["mkdir", "-p", "/run/modprobe.d"]).check()
    machine.put("install nvidia /bin/false\ninstall nvidia_modeset /bin/false\n", lines)
    folder = f"/lib/modules/{machine.run(['uname', '-r']).check().text.strip()}"
    machine.run(["mv", folder, f"{folder}.replaced"]).check()
    try:
        yield
    finally:
        machine.run(["mv", f"{folder}.replaced", folder]).check()
        machine.run(["rm", lines]).check()


@pytest.fixture
def rules(desktop: Machine, nvidia: State) -> Iterator[None]:
    """Rules of udev that load each module as soon as it goes, as NVIDIA's packages have or had them.

    With them, and as it is with the real driver, a load that finds no device to drive comes to nothing: udev
    is told that the module has gone, which makes it load the module again.
    """
    desktop.put(LOADER, LOAD, 0o755)
    desktop.run(["mkdir", "-p", "/run/udev/rules.d"]).check()
    desktop.put(RULES, LOADING)
    desktop.put(f"install nvidia {LOAD}\n", MODPROBE)
    desktop.run(["udevadm", "control", "--reload"]).check()
    yield
    desktop.run(["rm", LOAD, LOADING, MODPROBE]).check()
    desktop.run(["udevadm", "control", "--reload"]).check()
    # The loads that they have begun.
    desktop.run(["udevadm", "settle"], timeout=120).check()


def loads(machine: Machine) -> int:
    """Return how many times the driver was loaded."""
    return len(machine.run(["cat", LOADS]).text.split())


def test_rules_that_load_nvidia_as_soon_as_it_goes_neither_keep_it_nor_go_round(
    desktop: Machine, desktop_guest: Guest, nvidia: State, rules: None
) -> None:
    give(desktop_guest, NEIGHBOUR, EDU, display="hand-over")
    for _ in range(3):
        desktop.run(["rm", "-f", LOADS]).check()
        desktop_guest.start().check()
        assert desktop.state() == nvidia | {EDU: LENT, NEIGHBOUR: LENT}
        desktop.run(["udevadm", "settle"], timeout=120).check()
        assert (modules(desktop), loads(desktop)) == ([], 0)
        # Nobody else brings it back either.
        assert desktop.run(["modprobe", "nvidia_modeset"]).status != 0
        desktop_guest.destroy()
        desktop.wait_until(lambda: desktop.state() == nvidia, "the devices are back")
        desktop.wait_until(
            lambda: modules(desktop) == ["nvidia", "nvidia_modeset"], "both modules are back", 10
        )
        assert loads(desktop) == 1
        assert desktop.run(["find", "/run/modprobe.d", "-name", "*virtpass*"]).text == ""


def test_a_hook_that_was_killed_while_nvidia_was_kept_out_is_made_good(
    desktop: Machine, desktop_guest: Guest, nvidia: State, rules: None
) -> None:
    """In the phase of its modules, at a start and at a stop; of the rest other tests are."""
    give(desktop_guest, NEIGHBOUR, EDU, display="hand-over")

    def lend() -> list[str]:
        return accesses(killed(desktop, desktop_guest, "prepare", NEVER).check())

    def make_good(operation: str, access: int) -> None:
        ended = killed(desktop, desktop_guest, operation, access)
        assert ended.status == -signal.SIGKILL, str(ended)
        virtpass(desktop, "recover").check()
        assert desktop.state() == nvidia, f"{operation} was killed before {accesses(ended)[-1]}"
        assert modules(desktop) == ["nvidia", "nvidia_modeset"]
        assert desktop.run(["find", "/run/modprobe.d", "-name", "*virtpass*"]).text == ""
        assert journals(desktop) == []

    done = lend()
    back = accesses(killed(desktop, desktop_guest, "release", NEVER).check())
    assert desktop.state() == nvidia
    for number in range(which(done, "modprobe.d")[0], which(done, "rmmod")[-1] + 3):
        make_good("prepare", number)
    for number in range(which(back, "modprobe")[0], len(back)):
        lend()
        make_good("release", number)


def which(done: list[str], text: str) -> list[int]:
    """Return the numbers of the accesses that have a text in them."""
    found = [number for number, access in enumerate(done) if text in access]
    assert found, done
    return found


def test_nvidia_with_a_user_that_shows_nowhere_is_refused(
    desktop: Machine, desktop_guest: Guest, nvidia: State
) -> None:
    give(desktop_guest, NIC, NEIGHBOUR, EDU, display="hand-over")
    tell(desktop, "held", "Y", module="nvidia")
    refused = desktop_guest.start()
    assert refused.status != 0
    assert "the module nvidia cannot be unloaded: it is in use (1 users)" in refused.error_text
    assert desktop.state() == nvidia
    assert modules(desktop) == ["nvidia", "nvidia_modeset"]
    assert journals(desktop) == []
    assert "remove waits for" not in kernel_log(desktop)
    assert desktop.run(["find", "/run/modprobe.d", "-name", "*virtpass*"]).text == ""
    tell(desktop, "held", "N", module="nvidia")
    desktop_guest.start().check()
    desktop_guest.destroy()


def test_a_program_that_has_nvidia_open_is_named(
    desktop: Machine, desktop_guest: Guest, nvidia: State
) -> None:
    give(desktop_guest, NEIGHBOUR, EDU, display="hand-over")
    holder = desktop.begin(
        ["systemd-run", "--scope", "--quiet", "sh", "-c", "exec sleep 1000 < /dev/nvidia0"]
    )
    desktop.wait_until(
        lambda: desktop.get("/sys/module/nvidia/refcnt").strip() == b"2", "the program has the node open"
    )
    refused = desktop_guest.start()
    assert refused.status != 0
    assert "in use by sleep (process " in refused.error_text
    assert "/dev/nvidia0" in refused.error_text
    assert desktop.state() == nvidia
    assert modules(desktop) == ["nvidia", "nvidia_modeset"]
    holder.signal(signal.SIGTERM)
    holder.wait()
