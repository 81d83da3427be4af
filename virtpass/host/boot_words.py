"""Words of the kernel command line that decide how the host itself boots, which virtpass leaves alone.

Sources: the kernel's admin-guide/kernel-parameters.txt, systemd's kernel-command-line(7), dracut.cmdline(7),
initramfs-tools(7), and the scripts of mkinitcpio, genkernel and OpenRC.
"""

import re

from virtpass.host.tokens import key

# Read by the kernel or by systemd, to whom dashes and underscores in a name are one.
_NAMES = frozenset(
    (
        # by the kernel
        "root",
        "rootflags",
        "rootfstype",
        "nfsroot",
        "ro",
        "rw",
        "init",
        "rdinit",
        "noinitrd",
        "nomodule",
        "resume",
        "resume_offset",
        "md",
        "raid",
        "dm_mod.create",
        # by systemd
        "resumeflags",
        "fstab",
        "roothash",
        "usrhash",
        "veritytab",
        "mount.usr",
        "mount.usrflags",
        "mount.usrfstype",
        "systemd.break",
        "systemd.confirm_spawn",
        "systemd.gpt_auto",
        "systemd.mask",
        "systemd.run",
        "systemd.run_failure_action",
        "systemd.run_success_action",
        "systemd.unit",
        "systemd.volatile",
        "systemd.wants",
    )
)
_SYSTEMD_FAMILIES = ("luks", "systemd.verity")
# Read by an initramfs or by init, in this spelling only.
_WORDS = frozenset(
    (
        "single",
        "emergency",
        "rescue",
        # OpenRC
        "softlevel",
        "rc_runlevel",
        # initramfs-tools, with what cryptsetup and overlayroot add to it
        "boot",
        "break",
        "cryptopts",
        "overlayroot",
        # dracut
        "netroot",
        # mkinitcpio
        "cryptdevice",
        "cryptkey",
        "disablehooks",
        # genkernel
        "real_root",
        "real_rootflags",
        "real_init",
        "crypt_root",
        "dolvm",
        "domdadm",
        # ostree
        "ostree",
    )
)
# What follows "rd." in arguments of dracut; the last ones are of systemd in an initramfs.
_DRACUT = frozenset(
    (
        "auto",
        "break",
        "cmdline",
        "dasd",
        "dm",
        "fcoe",
        "hostonly",
        "iscsi",
        "live",
        "lvm",
        "md",
        "multipath",
        "nfs",
        "nonvmf",
        "nvmf",
        "overlay",
        "root",
        "writable",
        "zfcp",
        "znet",
        "emergency",
        "rescue",
    )
)
# The same in the names that dracut had for them before.
_OLD_DRACUT = ("rd_NO_", "rd_DASD", "rd_DM_", "rd_LUKS_", "rd_LVM_", "rd_MD_", "rd_ZFCP", "rd_ZNET")
# Given to init as an argument, and read by systemd itself.
_RUN_LEVEL = re.compile(r"[0-9Ss]")


def decides_boot(argument: str) -> bool:
    """Tell whether an argument decides where the host's root is, or what is started on it."""
    spelled = argument.partition("=")[0]
    name = key(argument)
    if _RUN_LEVEL.fullmatch(argument) or spelled in _WORDS or spelled.startswith(_OLD_DRACUT):
        return True
    if spelled.startswith("rd.") and spelled.split(".")[1] in _DRACUT:
        return True
    # systemd takes its own with "rd." before them for the initramfs.
    name = name.removeprefix("rd.")
    return name in _NAMES or name.startswith(_SYSTEMD_FAMILIES)
