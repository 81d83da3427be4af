"""Binding at boot: vfio-pci takes chosen devices by their address, after looking who they are.

Before a host driver is loaded, a soft dependency makes modprobe load vfio-pci, and an install line makes
it run a script first, in the initramfs as later. The script sets ``driver_override`` of each device that
still is the one that was chosen; then vfio-pci takes exactly these when it comes. ``vfio-pci.ids=``
would take every device with the same ids too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from virtpass.host.boot import OFF, TRIAL
from virtpass.host.edits import Edit
from virtpass.host.forms import OwnFile
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

MODPROBE = "/etc/modprobe.d/virtpass.conf"
SCRIPT = "/etc/virtpass/early-bind"
# What is in an initramfs for virtpass alone.
OWN_FILES = tuple(path.lstrip("/") for path in (MODPROBE, SCRIPT))
HEAD = "# Managed by virtpass - changes made here are lost\n"
# A name with anything else in it would be another line, or several words, to modprobe.
_MODULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class EarlyDevice:
    """A device that vfio-pci shall have from boot on.

    Attributes:
        address: where it is.
        identity: what it is; nothing else at that address is taken.
        modules: the modules of the host that would take it, such as "snd_hda_intel".
    """

    address: PciAddress
    identity: Identity
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EarlyPlan:
    """What modprobe and the initramfs are told.

    Attributes:
        devices: those that vfio-pci takes by address; none for none.
        softdeps: modules before which vfio-pci is loaded.
        blacklist: modules that are not loaded for the devices they know.
        unsafe_interrupts: whether VFIO accepts interrupts that are not remapped.
        modules: VFIO modules to load early, in this order; those that are built in are not among them.
        is_trial: whether only the boot that tries acts on it.
        by_id: those that vfio-pci takes by the ids on the kernel command line, in an initramfs that loads it
            before other drivers by itself.
    """

    devices: tuple[EarlyDevice, ...] = ()
    softdeps: tuple[str, ...] = ()
    blacklist: tuple[str, ...] = ()
    unsafe_interrupts: bool = False
    modules: tuple[str, ...] = ()
    is_trial: bool = False
    by_id: tuple[EarlyDevice, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell modprobe."""
        return not (self.devices or self.softdeps or self.blacklist or self.unsafe_interrupts)

    @property
    def needs_initramfs(self) -> bool:
        """Whether it has to be known before the root file system is there."""
        return bool(self.devices or self.softdeps or self.blacklist or self.by_id)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that an initramfs must have."""
        return (MODPROBE, *((SCRIPT,) if self.devices else ()))

    @property
    def files(self) -> tuple[str, ...]:
        """The same as an initramfs lists them; none where none is needed."""
        return tuple(path.lstrip("/") for path in self.paths) if self.needs_initramfs else ()

    @property
    def rivals(self) -> tuple[str, ...]:
        """Modules that would take devices which are bound by id, if they were loaded first."""
        return tuple(dict.fromkeys(module for device in self.by_id for module in device.modules))


def edits(plan: EarlyPlan) -> list[Edit]:
    """Return what is wanted in files."""
    if plan.is_empty:
        return []
    wanted = [Edit(MODPROBE, OwnFile(modprobe_text(plan)), "tells modprobe what VFIO takes, and when")]
    if plan.devices:
        reason = "names vfio-pci as the driver of the chosen devices, before another can have them"
        wanted.append(Edit(SCRIPT, OwnFile(script_text(plan.devices, is_trial=plan.is_trial)), reason, 0o755))
    return wanted


def modprobe_text(plan: EarlyPlan) -> str:
    """Render the file for modprobe.

    Raises:
        UsageError: a name cannot be that of a module.
    """
    lines = [HEAD.rstrip("\n")]
    if plan.devices:
        # kmod runs the line with /bin/sh, the caller's options in place of $CMDLINE_OPTS, also for a soft
        # dependency. --ignore-install: the line must not call itself.
        lines.append(f"install vfio-pci {SCRIPT}; modprobe --ignore-install vfio-pci $CMDLINE_OPTS")
    lines += [f"softdep {_module(name)} pre: vfio-pci" for name in plan.softdeps]
    lines += [f"blacklist {_module(name)}" for name in plan.blacklist]
    if plan.unsafe_interrupts:
        lines.append("options vfio_iommu_type1 allow_unsafe_interrupts=1")
        lines.append("options iommufd allow_unsafe_interrupts=1")
    return "\n".join(lines) + "\n"


def _module(name: str) -> str:
    if not _MODULE.fullmatch(name):
        raise UsageError(
            "module-name", f"'{name}' is not the name of a kernel module", "see the names with: lsmod"
        )
    return name


def script_text(devices: Sequence[EarlyDevice], *, is_trial: bool, root: str = "") -> str:
    """Render the script: POSIX shell, nothing but builtins, so that it runs in every initramfs.

    Args:
        devices: what vfio-pci shall have.
        is_trial: whether only the boot that tries acts on it.
        root: what is put before the paths of the kernel's file systems; empty but for tests.
    """
    calls = "\n".join(
        f"take {one.address} {' '.join(f'0x{number:04x}' for number in one.identity[:4])}" for one in devices
    )
    wanted = f'case " $words " in *" {TRIAL} "*) ;; *) exit 0 ;; esac\n' if is_trial else ""
    return f"""#!/bin/sh
{HEAD}# modprobe runs this before it loads vfio-pci, in the initramfs too. It never fails.

words=
[ -r {root}/proc/cmdline ] && read -r words < {root}/proc/cmdline
case " $words " in *" {OFF} "*) exit 0 ;; esac
{wanted}
# In the initramfs nothing uses a device yet; later a device that has a driver is not ours to take. Of two
# file systems at one place the later one covers the other.
kind=
if [ -r {root}/proc/mounts ]; then
    while read -r _ point type _; do
        [ "$point" = / ] && kind=$type
    done < {root}/proc/mounts
fi

# put VALUE FILE: the kernel may refuse, and the shell must not end for it.
put() {{
    echo "$1" 2> /dev/null > "$2"
}}

# take ADDRESS VENDOR DEVICE SUBSYSTEM-VENDOR SUBSYSTEM-DEVICE
take() {{
    address=$1
    dir={root}/sys/bus/pci/devices/$1
    [ -e "$dir/driver_override" ] || return 0
    for attribute in vendor device subsystem_vendor subsystem_device; do
        shift
        found=
        [ -r "$dir/$attribute" ] && read -r found < "$dir/$attribute"
        if [ "$found" != "$1" ]; then
            put "virtpass: $address is another device now, and left to the host" {root}/dev/kmsg
            return 0
        fi
    done
    if [ -e "$dir/driver" ]; then
        [ "$kind" = rootfs ] || return 0
        [ -e "{root}/sys/bus/pci/drivers/vfio-pci/$address" ] && return 0
        put vfio-pci "$dir/driver_override" && put "$address" "$dir/driver/unbind"
    else
        put vfio-pci "$dir/driver_override"
    fi
    return 0
}}

{calls}
exit 0
"""
