"""How openSUSE says which bootloader it has."""

from virtpass.host.facts import HostFacts

SETTINGS = "/etc/sysconfig/bootloader"
SDBOOTUTIL = "/usr/bin/sdbootutil"
# Bootloaders whose entries sdbootutil writes, and how ``LoaderInfo`` begins when they booted.
KEPT_BY_SDBOOTUTIL = {"systemd-boot": "systemd-boot", "grub2-bls": "grub"}


def loader_type(facts: HostFacts) -> str:
    """Return LOADER_TYPE, such as "grub2-efi"; the last assignment counts, and empty is none."""
    kind = ""
    for line in facts.text(SETTINGS).splitlines():
        name, _, value = line.strip().partition("=")
        if name == "LOADER_TYPE":
            kind = value.strip().strip("\"'")
    return kind


def has_sdbootutil(facts: HostFacts) -> bool:
    """Tell whether sdbootutil keeps the boot entries, and with them the images of the initramfs."""
    return facts.has(SDBOOTUTIL) and loader_type(facts) in KEPT_BY_SDBOOTUTIL
