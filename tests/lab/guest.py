"""The nested guest: a libvirt domain that says which PCI devices it sees, and draws on its card.

Its kernel and initial RAM file system lie in the image (`initramfs.py`, `guest_init.sh`). It powers
off at the power button, so `virsh shutdown` works. No device is given to it here: that is what is tested.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .machine import Machine, Result
from .overlay import INSIDE
from .picture import Picture

NAME = "guest"
KERNEL_ARGUMENTS = "loglevel=3 consoleblank=0 mitigations=off init_on_alloc=0 lsm= nokaslr"
# What the guest fills the monitor with: blue as the kernel's console has it.
BLUE = (0, 0, 170)
# The kernel and drivers come up in about 20 s under TCG on two idle processors.
READY_TIMEOUT = 300.0
# Whatever wakes the daemon, and itself.
DAEMON = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service")


@dataclass(frozen=True)
class GuestDevice:
    """One PCI function as the guest sees it; `driver` is "-" when it has none."""

    address: str
    ids: str
    pci_class: str
    driver: str


# libvirt has AppArmor's compiler run five times at each start of a domain, four seconds of six. So only few
# domains are confined; the daemon, and with it the hook, always is. Boot machines have no AppArmor.
UNCONFINED = "  <seclabel type='none' model='apparmor'/>\n"


def domain_xml(
    machine: Machine, name: str = NAME, *, memory: int = 256, devices: str = "", confined: bool = False
) -> str:
    """Return the XML of a domain `name`, with `memory` MiB and the XML of more `devices`."""
    label = "" if confined or machine.image.kind.own_loader else UNCONFINED
    # The same name always has the same UUID, so that a domain can be defined anew.
    return f"""\
<domain type='{machine.domain_type}'>
  <name>{name}</name>
  <uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, name)}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{INSIDE}/guest.vmlinuz</kernel>
    <initrd>{INSIDE}/guest.initramfs</initrd>
    <cmdline>console=tty0 console=ttyS0 {KERNEL_ARGUMENTS}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <controller type='pci' model='pcie-root'/>
    <serial type='file'>
      <source path='{serial_file(name)}'/>
    </serial>
    <video><model type='none'/></video>
    <memballoon model='none'/>
{devices}  </devices>
{label}</domain>
"""


def hostdev_xml(host: str, bus: int, function: int = 0, *, multifunction: bool = False) -> str:
    """Return a managed hostdev for the host's function `host`, at slot 0 of the guest's `bus`."""
    domain, host_bus, rest = host.split(":")
    slot, _, host_function = rest.partition(".")
    several = " multifunction='on'" if multifunction else ""
    return f"""\
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source>
        <address domain='0x{domain}' bus='0x{host_bus}' slot='0x{slot}' function='0x{host_function}'/>
      </source>
      <address type='pci' domain='0x0000' bus='{bus:#04x}' slot='0x00' function='{function:#x}'{several}/>
    </hostdev>
"""


def serial_file(name: str = NAME) -> str:
    """Return the file in the host that receives what the domain `name` says."""
    return f"/var/log/libvirt/qemu/{name}-serial.log"


class Guest:
    """One nested domain in a machine."""

    def __init__(self, machine: Machine, name: str = NAME) -> None:
        """Speak of the domain `name`; `define` makes it."""
        self.machine = machine
        self.name = name

    def define(self, devices: str = "", *, confined: bool = False) -> None:
        """Define the domain, or define it anew, with the XML of `devices`. Raises CommandFailed."""
        xml = domain_xml(self.machine, self.name, devices=devices, confined=confined)
        self.machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()

    def start(self, timeout: float = 180) -> Result:
        """Start the domain and return what virsh said: failing may be what a test wants."""
        self.forget_serial()
        return self.machine.run(["virsh", "start", self.name], timeout=timeout)

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> dict[str, GuestDevice]:
        """Wait until the guest has loaded its drivers; return its PCI devices. Raises AssertionError."""
        self.machine.wait_until(lambda: "GUEST READY" in self.serial(), f"{self.name} is ready", timeout)
        return self.devices()

    def forget_serial(self) -> None:
        """Empty the file of what the guest has said: old words would be taken for new ones."""
        self.machine.run(["truncate", "-cs", "0", serial_file(self.name)]).check()

    def serial(self) -> str:
        """Return what the guest has said on its serial console since it was started."""
        return self.machine.run(["cat", serial_file(self.name)]).text

    def devices(self) -> dict[str, GuestDevice]:
        """Return the PCI devices that the guest saw last, by its own addresses."""
        last = self.serial().rpartition("GUEST READY")[0].rpartition("GUEST SEES")[2]
        lines = (line.split() for line in last.splitlines())
        return {words[1]: GuestDevice(*words[1:]) for words in lines if words and words[0] == "PCI"}

    def state(self) -> str:
        """Return the domain's state as virsh spells it, "running" or "shut off"."""
        return self.machine.run(["virsh", "domstate", self.name]).text.strip()

    def shutdown(self, timeout: float = 120) -> None:
        """Press the power button and wait until the domain is off. Raises AssertionError, CommandFailed."""
        self.machine.run(["virsh", "shutdown", self.name]).check()
        self.machine.wait_until(lambda: self.state() == "shut off", f"{self.name} is off", timeout)

    def destroy(self) -> None:
        """End the domain at once; nothing happens if it does not run."""
        self.machine.run(["virsh", "destroy", self.name], timeout=120)

    def confinement(self) -> str:
        """Return how AppArmor confines the domain, which runs."""
        return self.machine.get(f"/proc/{self._process()}/attr/current").decode().strip()

    def kill(self) -> None:
        """Let the domain's QEMU die as by a crash. Raises CommandFailed."""
        self.machine.run(["kill", "-9", self._process()]).check()

    def _process(self) -> str:
        return self.machine.get(f"/run/libvirt/qemu/{self.name}.pid").decode().strip()

    def remove(self) -> None:
        """End and undefine the domain, if there is one."""
        self.destroy()
        self.machine.run(["virsh", "undefine", self.name])


def draws(picture: Picture) -> bool:
    """Return whether `picture` is what the guest draws."""
    return picture.share(BLUE) > 0.5


@contextmanager
def without_daemon(machine: Machine) -> Iterator[None]:
    """Stop libvirt's daemon, with the sockets that would start it, and start it again; domains go on."""
    machine.run(["systemctl", "stop", *DAEMON], timeout=120).check()
    try:
        yield
    finally:
        machine.run(["systemctl", "start", *DAEMON], timeout=120).check()


def nested(machine: Machine) -> Iterator[Guest]:
    """Yield a guest without any host device; it is gone afterwards."""
    guest = Guest(machine)
    guest.define()
    yield guest
    guest.remove()
