"""Domain XML for tests, as libvirt formats it."""

from collections.abc import Iterable

from virtpass.pci.address import PciAddress

UUID = "6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a"
OTHER_UUID = "b7a1c9d2-8e5f-4a3b-a6c7-d8e9f0a1b2c3"

Q35 = "pcie-root"
I440FX = "pci-root"


def pci(text: str) -> PciAddress:
    return PciAddress.parse(text)


def attributes(address: PciAddress) -> str:
    return (
        f"domain='0x{address.domain:04x}' bus='0x{address.bus:02x}' slot='0x{address.slot:02x}' "
        f"function='0x{address.function:x}'"
    )


def guest_address(text: str, extra: str = "") -> str:
    return f"      <address type='pci' {attributes(pci(text))}{extra}/>"


def hostdev(
    source: str, guest: str = "", *, managed: str = " managed='yes'", inside: str = "", extra: str = ""
) -> str:
    lines = [
        f"    <hostdev mode='subsystem' type='pci'{managed}>",
        "      <source>",
        f"        <address {attributes(pci(source))}/>",
        "      </source>",
        *([f"      {inside}"] if inside else []),
        *([guest_address(guest, extra)] if guest else []),
        "    </hostdev>",
    ]
    return "\n".join(lines)


def root_port(index: int) -> str:
    place = f"domain='0x0000' bus='0x00' slot='0x02' function='0x{index - 1:x}'"
    return "\n".join(
        (
            f"    <controller type='pci' index='{index}' model='pcie-root-port'>",
            "      <model name='pcie-root-port'/>",
            f"      <target chassis='{index}' port='0x{0x0F + index:x}'/>",
            f"      <address type='pci' {place}{' multifunction=' + repr('on') if index == 1 else ''}/>",
            "    </controller>",
        )
    )


def _plain_device(index: int, address: str) -> str:
    return (
        f"    <controller type='virtio-serial' index='{index}'>\n{guest_address(address)}\n    </controller>"
    )


def domain(
    *hostdevs: str,
    root: str | None = Q35,
    ports: int = 3,
    used: Iterable[str] = ("0000:01:00.0", "0000:02:00.0"),
    name: str = "guest",
    uuid: str = UUID,
    metadata: str = "",
    kind: str = "kvm",
    devices: str = "",
) -> str:
    """Return a domain with a PCI root of this model, root ports on q35, and plain devices at ``used``."""
    lines = [
        f"<domain type='{kind}'>",
        f"  <name>{name}</name>",
        f"  <uuid>{uuid}</uuid>",
        "  <title>A guest</title>",
        *(["  <metadata>", f"    {metadata}", "  </metadata>"] if metadata else []),
        "  <memory unit='KiB'>65536</memory>",
        "  <os>",
        "    <type arch='x86_64'>hvm</type>",
        "  </os>",
        "  <devices>",
        *([f"    <controller type='pci' index='0' model='{root}'/>"] if root else []),
        *(root_port(index) for index in range(1, ports + 1) if root == Q35),
        *(_plain_device(index, address) for index, address in enumerate(used) if root),
        "    <input type='mouse' bus='ps2'/>",
        *([devices] if devices else []),
        *hostdevs,
        "    <memballoon model='none'/>",
        "  </devices>",
        "</domain>",
        "",
    ]
    return "\n".join(lines)
