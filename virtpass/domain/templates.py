"""Whole XML fragments with the choices that are policy: filled here, never put together from strings.

Each comes from ``xml_templates/``, or from ``/etc/virtpass/xml_templates/`` when the user has a file of that
name there.
"""

import os
import stat
from dataclasses import dataclass

from lxml import etree

from virtpass.domain.document import MAX_XML, parse_document
from virtpass.domain.hostdev import write_address
from virtpass.pci.address import PciAddress
from virtpass.system.errors import PermissionDeniedError, RefusedError, UsageError
from virtpass.system.host import Host
from virtpass.system.resources import directory

OVERRIDES = "/etc/virtpass/xml_templates"

# The attribute model of <driver> in a hostdev; older versions drop it or refuse the XML.
_DRIVER_MODEL_VERSION = 10_000_000


@dataclass(frozen=True, slots=True)
class Templates:
    """Texts of the fragments, by file name without ending."""

    hostdev: str
    root_port: str
    metadata: str


def packaged_templates() -> Templates:
    """Return the templates that travel with virtpass.

    Raises:
        FailedError: the installation is incomplete.
    """
    folder = directory("xml_templates")
    return Templates(
        *((folder / f"{name}.xml").read_text("utf-8") for name in ("hostdev", "root-port", "metadata"))
    )


def load_templates(host: Host) -> Templates:
    """Return the templates, those of the host's user first.

    What they say ends up in XML that root's libvirt acts on, so only root's own files are taken.

    Raises:
        RefusedError: others than root may write to an overriding file or its directory.
        PermissionDeniedError: this user may not read it.
        UsageError: it is not UTF-8.
        FailedError: the installation is incomplete.
    """
    packaged = packaged_templates()
    return Templates(
        _override(host, "hostdev.xml") or packaged.hostdev,
        _override(host, "root-port.xml") or packaged.root_port,
        _override(host, "metadata.xml") or packaged.metadata,
    )


def hostdev_element(
    template: str, source: PciAddress, guest: PciAddress | None, libvirt_version: int
) -> etree._Element:
    """Return a hostdev element for one device.

    Args:
        template: text of the fragment ``hostdev.xml``.
        source: the device on the host.
        guest: where the guest sees it; None leaves that to libvirt.
        libvirt_version: as libvirt counts, 9.0.0 is 9000000.

    From 10.0 on libvirt looks for a vendor's own VFIO driver and moves even a device that is on vfio-pci to
    it (virPCIDeviceFindBestVFIOVariant in src/util/virpci.c); to name the driver prevents that.

    Raises:
        UsageError: the template is not one.
    """
    element = parse_document(template, "hostdev", "the template hostdev.xml")
    source_address, guest_address = element.find("source/address"), element.find("address")
    if source_address is None or guest_address is None:
        raise UsageError("template", "the template hostdev.xml lacks source/address or address")
    write_address(source_address, source)
    if guest is None:
        element.remove(guest_address)
    else:
        write_address(guest_address, guest)
    if libvirt_version >= _DRIVER_MODEL_VERSION:
        driver = element.find("driver")
        if driver is None:
            driver = etree.Element("driver")
            element.insert(0, driver)
        if "model" not in driver.attrib:
            driver.set("model", "vfio-pci")
    return element


def root_port_element(template: str, index: int) -> etree._Element:
    """Return the controller element of a root port.

    Args:
        template: text of the fragment ``root-port.xml``.
        index: number of the bus behind it.

    Raises:
        UsageError: the template is not one.
    """
    element = parse_document(template, "controller", "the template root-port.xml")
    if element.get("model") != "pcie-root-port":
        raise UsageError("template", "the template root-port.xml is not a controller of model pcie-root-port")
    element.set("index", str(index))
    return element


def _override(host: Host, name: str) -> str | None:
    try:
        folder = host.open_directory(OVERRIDES)
    except FileNotFoundError:
        return None
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise PermissionDeniedError(
            "permission", f"{OVERRIDES}/{name} cannot be read", "run it as root"
        ) from error
    except OSError as error:
        raise RefusedError(
            "unsafe-file", f"{OVERRIDES}/{name} is a link or no file; it is not followed"
        ) from error
    finally:
        os.close(folder)
    state = os.fstat(descriptor)
    owned = stat.S_ISREG(state.st_mode) and state.st_uid in (0, os.geteuid())
    if not owned or stat.S_IMODE(state.st_mode) & 0o022:
        os.close(descriptor)
        raise RefusedError(
            "unsafe-file",
            f"{OVERRIDES}/{name} is no file, or others than root may write to it",
            f"chown root {OVERRIDES}/{name}; chmod go-w {OVERRIDES}/{name}",
        )
    with open(descriptor, "rb") as file:
        try:
            return file.read(MAX_XML + 1).decode()
        except UnicodeDecodeError as error:
            raise UsageError("template", f"{OVERRIDES}/{name} is not UTF-8") from error
