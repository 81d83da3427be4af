"""What is to change in a domain's XML, worked out before anything is written.

All functions here are pure: text in, plan out. A plan whose work is done already is empty.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lxml import etree

from virtpass.binding.policy import DEFAULT_POLICY
from virtpass.domain.addressing import Slot, place, read_topology, used_addresses
from virtpass.domain.document import insert, insert_after, parse_document, remove, serialise
from virtpass.domain.hostdev import Hostdev, hostdev_elements
from virtpass.domain.metadata import (
    Passthrough,
    RecordedDevice,
    read_passthrough,
    template_policy,
    write_passthrough,
)
from virtpass.domain.policy import changed, meaning, unlike
from virtpass.domain.templates import Templates, hostdev_element, packaged_templates, root_port_element
from virtpass.pci.address import PciAddress, libvirt_number
from virtpass.pci.identity import Identity
from virtpass.system.errors import NotFoundError, RefusedError, UsageError

# The password of a display and the cookies of a network disk (virDomainGraphicsAuthDefFormatAttr and
# virDomainDiskSourceFormatNetworkCookies in libvirt's domain_conf.c); XML to be defined has them.
_SECRET = re.compile(
    r"""(?P<before>\bpasswd\s*=\s*(?P<quote>["']))(?P<password>.*?)(?P=quote)"""
    r"|(?P<tag><cookie\b[^>]*(?<!/)>)(?P<cookie>.*?)(?=</cookie\s*>)",
    re.DOTALL,
)

# What follows hostdevs in the XML that libvirt formats (virDomainDefFormatInternalSetRootName in libvirt's
# src/conf/domain_conf.c).
_AFTER_HOSTDEVS = frozenset(
    {"redirdev", "redirfilter", "hub", "watchdog", "memballoon", "rng", "nvram", "panic", "shmem", "memory"}
    | {"iommu", "vsock", "crypto", "pstore"}
)

# What libvirt itself writes into a root port that it was asked for with no more than an index.
_PLAIN_PORT_CHILDREN = frozenset({"model", "target", "address"})


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """A change of one domain's XML.

    Attributes:
        name: the domain's name.
        uuid: its UUID.
        before: its XML as it is.
        after: its XML as it is to be; both texts went through the same serialiser.
        changes: what is done, one sentence each.
        notes: what is left as it is, and why a user should know.
    """

    name: str
    uuid: str
    before: str
    after: str
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.before == self.after

    @property
    def diff(self) -> str:
        """The change as a unified diff to be shown, without secrets; empty when there is none."""
        before, after = (
            _SECRET.sub(_masked, text).splitlines(keepends=True) for text in (self.before, self.after)
        )
        return "".join(difflib.unified_diff(before, after, "before", "after"))


def _masked(found: re.Match[str]) -> str:
    """Return a secret's place without it, on as many lines: what follows must not move in the diff."""
    breaks = "\n" * (found["password"] or found["cookie"] or "").count("\n")
    return f"{found['before'] or found['tag']}***{breaks}{found['quote'] or ''}"


def plan_attach(
    domain_xml: str,
    devices: Sequence[tuple[PciAddress, Identity]],
    libvirt_version: int,
    templates: Templates | None = None,
    *,
    policy: Mapping[str, str] | None = None,
    virtual: frozenset[PciAddress] = frozenset(),
) -> DomainPlan:
    """Plan to give devices to a domain.

    A device that the domain has already keeps all its settings and its guest address; it only becomes
    managed and recorded.

    Args:
        domain_xml: the domain's persistent XML with its secrets, for it is to be defined again.
        devices: which, and what they are.
        libvirt_version: as libvirt counts, 9.0.0 is 9000000.
        templates: fragments to use instead of the packaged ones.
        policy: values of the policy to set, by key.
        virtual: virtual functions among these devices and those of the domain; each is a card of its own.

    Raises:
        UsageError: the XML or the policy is not understood, or no device is given.
        RefusedError: a device is a disk or network interface of the domain, or the guest has no room.
    """
    if not devices:
        raise UsageError("no-device", "no device is given", "name at least one PCI address")
    edit = _Edit(domain_xml, templates, virtual)
    present = edit.present()
    identities = dict(devices)
    for address in sorted(identities):
        if address in present:
            edit.keep(*present[address])
    new = [address for address in sorted(identities) if address not in present]
    edit.add_hostdevs(new, libvirt_version)
    edit.record(identities, added=frozenset(new))
    edit.set_policy(policy or {})
    edit.note_separate_functions(identities)
    edit.note_absent()
    return edit.plan()


def plan_detach(
    domain_xml: str, addresses: Iterable[PciAddress], templates: Templates | None = None
) -> DomainPlan:
    """Plan to take devices out of a domain.

    Their hostdevs go, whoever wrote them, with what is recorded of them; so do root ports that virtpass
    added, once nothing sits behind them. With the last device goes our metadata element.

    Args:
        domain_xml: as for `plan_attach`.
        addresses: which devices.
        templates: fragments to use instead of the packaged ones.

    Raises:
        UsageError: the XML is not understood, or no device is given.
        NotFoundError: a device is not in the domain.
        RefusedError: a device is a disk or network interface of the domain, or a card would stay in the
            guest without its function 0.
    """
    going = sorted(set(addresses))
    if not going:
        raise UsageError("no-device", "no device is given", "name at least one PCI address")
    edit = _Edit(domain_xml, templates)
    present = edit.present()
    for address in going:
        if address not in present and edit.passthrough.identity(address) is None:
            raise NotFoundError(
                "not-attached",
                f"{address} is not in domain '{edit.name}'",
                f"look with: virtpass domain show {shlex.quote(edit.name)}",
            )
    edit.remove_hostdevs([present[address] for address in going if address in present])
    edit.forget(going)
    return edit.plan()


def plan_adopt(
    domain_xml: str,
    identify: Callable[[PciAddress], Identity],
    templates: Templates | None = None,
    *,
    virtual: frozenset[PciAddress] = frozenset(),
) -> DomainPlan:
    """Plan to record the devices that a domain has already, whoever wrote its hostdevs.

    Afterwards the record names exactly the domain's hostdevs, and all of them are managed.

    Args:
        domain_xml: as for `plan_attach`.
        identify: tells what the device at an address is; its errors are passed on.
        templates: fragments to use instead of the packaged ones.
        virtual: virtual functions among the devices of the domain.

    Raises:
        UsageError: the XML is not understood.
        RefusedError: the domain has no PCI hostdev.
    """
    edit = _Edit(domain_xml, templates, virtual)
    hostdevs = {
        hostdev.source: (element, hostdev)
        for element, hostdev in hostdev_elements(edit.domain)
        if hostdev.kind == "hostdev"
    }
    if not hostdevs:
        raise RefusedError(
            "no-hostdev",
            f"domain '{edit.name}' has no PCI device",
            f"give it one with: virtpass domain attach {shlex.quote(edit.name)} ADDRESS",
        )
    for element, hostdev in hostdevs.values():
        edit.keep(element, hostdev)
    edit.forget([device.address for device in edit.passthrough.devices if device.address not in hostdevs])
    edit.record({address: identify(address) for address in hostdevs})
    edit.note_interfaces()
    edit.note_separate_functions(hostdevs)
    return edit.plan()


def plan_release(domain_xml: str, templates: Templates | None = None) -> DomainPlan:
    """Plan to take out of a domain all that virtpass has written, and nothing else.

    Hostdevs that were there before stay, and are managed by libvirt or not as before.

    Args:
        domain_xml: as for `plan_attach`.
        templates: fragments to use instead of the packaged ones.

    Raises:
        UsageError: the XML is not understood.
        RefusedError: the domain does not have our metadata, or a card would stay in the guest without its
            function 0.
    """
    edit = _Edit(domain_xml, templates)
    if not edit.is_ours:
        raise no_policy(edit.name)
    present = edit.present()
    devices = edit.passthrough.devices
    edit.remove_hostdevs([present[one.address] for one in devices if one.is_added and one.address in present])
    for device in devices:
        if device.was_unmanaged and device.address in present:
            edit.unmanage(*present[device.address])
        if device.was_single and device.address in present:
            edit.make_single(*present[device.address])
    edit.forget([device.address for device in devices])
    return edit.plan()


def plan_policy(
    domain_xml: str, settings: Mapping[str, str], templates: Templates | None = None
) -> DomainPlan:
    """Plan to change what the hook may do with a domain.

    Args:
        domain_xml: as for `plan_attach`.
        settings: values by key; all others stay.
        templates: fragments to use instead of the packaged ones.

    Raises:
        UsageError: the XML or a setting is not understood.
        RefusedError: the domain does not have our metadata.
    """
    edit = _Edit(domain_xml, templates)
    if not edit.is_ours:
        raise no_policy(edit.name)
    edit.set_policy(settings)
    return edit.plan(keeps_metadata=True)


def no_policy(name: str) -> RefusedError:
    """Return the error for a domain without our metadata."""
    return RefusedError(
        "not-ours",
        f"virtpass does not look after domain '{name}', which has no policy then",
        f"virtpass domain adopt {shlex.quote(name)}, where it has a device; else:"
        f" virtpass domain attach {shlex.quote(name)} ADDRESS",
    )


@dataclass
class _Edit:
    """A domain document on its way from before to after."""

    domain_xml: str
    templates: Templates | None
    virtual: frozenset[PciAddress] = frozenset()
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unmanaged: set[PciAddress] = field(default_factory=set)
    single: set[PciAddress] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.fragments = self.templates or packaged_templates()
        self.domain = parse_document(self.domain_xml)
        self.before = serialise(self.domain)
        self.name = self.domain.findtext("name", "")
        self.uuid = self.domain.findtext("uuid", "")
        if not self.name or not self.uuid:
            raise UsageError("xml-domain", "the domain's XML has no name or no UUID")
        recorded = read_passthrough(self.domain)
        self.is_ours = recorded is not None
        self.passthrough = recorded or Passthrough(template_policy(self.fragments.metadata))

    def plan(self, *, keeps_metadata: bool = False) -> DomainPlan:
        """Write our metadata and return the finished plan.

        Args:
            keeps_metadata: keep the element also when no device is recorded in it.
        """
        is_ours = keeps_metadata or bool(self.passthrough.devices)
        write_passthrough(self.domain, self.passthrough if is_ours else None, self.fragments.metadata)
        if self.is_ours and not is_ours:
            lost = unlike(self.passthrough.policy, DEFAULT_POLICY)
            self.changes += [f"forget policy {key}={value}" for key, value in lost.items()]
        after = serialise(self.domain)
        return DomainPlan(self.name, self.uuid, self.before, after, tuple(self.changes), tuple(self.notes))

    def present(self) -> dict[PciAddress, tuple[etree._Element, Hostdev]]:
        """Return the hostdevs by source address."""
        return {hostdev.source: (element, hostdev) for element, hostdev in hostdev_elements(self.domain)}

    def keep(self, element: etree._Element, hostdev: Hostdev) -> None:
        """Leave a hostdev that is there as it is, but let libvirt give the device back after the stop."""
        self._require_hostdev(hostdev)
        if not hostdev.is_managed:
            element.set("managed", "yes")
            self.unmanaged.add(hostdev.source)
            self.changes.append(f"set managed='yes' on hostdev {hostdev.source}")

    def unmanage(self, element: etree._Element, hostdev: Hostdev) -> None:
        """Take back what `keep` did."""
        if hostdev.is_managed:
            element.set("managed", "no")
            self.changes.append(f"set managed='no' on hostdev {hostdev.source}")

    def make_single(self, element: etree._Element, hostdev: Hostdev) -> None:
        """Take back that function 0 of a guest slot says that there are more."""
        own = element.find("address")
        if own is not None and hostdev.is_multifunction:
            own.attrib.pop("multifunction")
            self.changes.append(f"take multifunction='on' from guest address {hostdev.guest}")

    def add_hostdevs(self, sources: Sequence[PciAddress], libvirt_version: int) -> None:
        """Add hostdevs, and what the guest needs to see them."""
        present = [hostdev for _, hostdev in hostdev_elements(self.domain)]
        placement = place(read_topology(self.domain), present, sources, self.virtual)
        for index in placement.new_root_ports:
            self._add_root_port(index)
        for source in sources:
            guest = placement.addresses.get(source)
            self._insert_hostdev(hostdev_element(self.fragments.hostdev, source, guest, libvirt_version))
            where = f" as guest address {guest}" if guest else ""
            self.changes.append(f"add hostdev {source}{where}")
        self._mark_multifunction({guest[:3] for guest in placement.addresses.values()}, sources)
        if sources:
            self.notes += placement.notes

    def remove_hostdevs(self, hostdevs: Sequence[tuple[etree._Element, Hostdev]]) -> None:
        """Remove hostdevs, and the root ports of ours that are free then."""
        for element, hostdev in hostdevs:
            self._require_hostdev(hostdev)
            remove(element)
            lost = f" with its settings: {', '.join(hostdev.settings)}" if hostdev.settings else ""
            self.changes.append(f"remove hostdev {hostdev.source}{lost}")
        slots = {
            hostdev.guest[:3]
            for _, hostdev in hostdevs
            if hostdev.guest is not None and not hostdev.guest.function
        }
        for address in sorted(used_addresses(self.domain)):
            if address[:3] in slots:
                raise RefusedError(
                    "function-0",
                    f"the guest would no longer see its device {address}: its function 0 would be missing",
                    "detach the whole card, then attach what is to stay",
                )
        self._remove_root_ports()

    def record(
        self, identities: dict[PciAddress, Identity], added: frozenset[PciAddress] = frozenset()
    ) -> None:
        """Record what devices are, and which of their hostdevs are ours."""
        before = {device.address: device for device in self.passthrough.devices}
        recorded = {address: device.identity for address, device in before.items()}
        for address, seen in sorted(identities.items()):
            known = recorded.get(address)
            # A serial number that only root can read is not forgotten because somebody else looked.
            if known is not None and known.is_same_device(seen) and not (seen.serial and not known.serial):
                continue
            recorded[address] = seen
            was = f", which was {known}" if known is not None else ""
            self.changes.append(f"record {address} as {seen}{was}")
        devices = tuple(
            RecordedDevice(
                address,
                identity,
                is_added=address in added or (address in before and before[address].is_added),
                was_unmanaged=address in self.unmanaged
                or (address in before and before[address].was_unmanaged),
                was_single=address in self.single or (address in before and before[address].was_single),
            )
            for address, identity in recorded.items()
        )
        self.passthrough = replace(self.passthrough, devices=devices)

    def forget(self, addresses: Iterable[PciAddress]) -> None:
        """Remove what is recorded of devices."""
        going = {address for address in addresses if self.passthrough.identity(address) is not None}
        self.changes += [f"forget what is recorded of {address}" for address in sorted(going)]
        devices = tuple(device for device in self.passthrough.devices if device.address not in going)
        self.passthrough = replace(self.passthrough, devices=devices)

    def set_policy(self, settings: Mapping[str, str]) -> None:
        """Set values of the policy, and say what they cost."""
        before = self.passthrough.policy
        policy = changed(before, settings)
        old = before.attributes()
        costly = unlike(policy, DEFAULT_POLICY)
        for key, value in unlike(policy, before).items():
            self.changes.append(f"set policy {key}={value} instead of {old[key]}")
            if key in costly:
                self.notes.append(f"{key}={value}: {meaning(key, value)}")
        self.passthrough = replace(self.passthrough, policy=policy)

    def note_interfaces(self) -> None:
        """Say which network interfaces of the domain stay libvirt's business."""
        for _, hostdev in hostdev_elements(self.domain):
            if hostdev.kind == "interface":
                self.notes.append(
                    f"{hostdev.source} is a network interface of the domain; libvirt looks after it"
                )

    def note_absent(self) -> None:
        """Say which recorded devices somebody has taken out of the domain without telling us."""
        present = self.present()
        for device in self.passthrough.devices:
            if device.address not in present:
                missing = f"{device.address} is recorded, but no longer in the domain"
                self.notes.append(f"{missing}; virtpass domain adopt {shlex.quote(self.name)} forgets it")

    def note_separate_functions(self, addresses: Iterable[PciAddress]) -> None:
        """Say which cards the guest sees as several devices."""
        slots: dict[Slot, set[Slot]] = {}
        for address, (_, hostdev) in self.present().items():
            if address in self.virtual or hostdev.guest is None:
                continue
            if any(address.same_slot(other) for other in addresses):
                slots.setdefault(address[:3], set()).add(hostdev.guest[:3])
        for slot, guest_slots in sorted(slots.items()):
            if len(guest_slots) > 1:
                card = str(PciAddress(*slot, 0)).rpartition(".")[0]
                self.notes.append(
                    f"the guest sees the functions of card {card} as separate devices; their addresses stay"
                )

    def _require_hostdev(self, hostdev: Hostdev) -> None:
        if hostdev.kind == "interface":
            raise RefusedError(
                "is-interface",
                f"{hostdev.source} is a network interface of domain '{self.name}', libvirt's own business",
                "change it with: virsh -c qemu:///system detach-interface --config",
            )
        if hostdev.kind == "disk":
            raise RefusedError(
                "is-disk",
                f"{hostdev.source} is a disk of domain '{self.name}' (type nvme), which QEMU itself drives",
                "change it with: virsh -c qemu:///system detach-disk --config",
            )

    def _add_root_port(self, index: int) -> None:
        port = root_port_element(self.fragments.root_port, index)
        # There is one at least: the root, else no port would be placed. libvirt sorts them by index.
        others = self.domain.findall("devices/controller[@type='pci']")
        lower = [other for other in others if libvirt_number(other.get("index", "0")) < index]
        insert_after(port, lower[-1])
        self.passthrough = replace(self.passthrough, root_ports=(*self.passthrough.root_ports, index))
        self.changes.append(f"add PCI Express root port {index}")

    def _remove_root_ports(self) -> None:
        """Remove our unused root ports, the last first: libvirt would fill a gap with a new port."""
        while self.passthrough.root_ports:
            topology = read_topology(self.domain)
            index = max(topology.controllers, default=0)
            if (
                index not in self.passthrough.root_ports
                or index not in topology.root_ports - topology.used_buses
            ):
                return
            port = self.domain.find(f"devices/controller[@type='pci'][@index='{index}']")
            if port is None or not {child.tag for child in port} <= _PLAIN_PORT_CHILDREN:
                return
            remove(port)
            kept = tuple(other for other in self.passthrough.root_ports if other != index)
            self.passthrough = replace(self.passthrough, root_ports=kept)
            self.changes.append(f"remove PCI Express root port {index}")

    def _insert_hostdev(self, element: etree._Element) -> None:
        devices = self.domain.find("devices")
        if devices is None:
            devices = etree.Element("devices")
            insert(self.domain, len(self.domain), devices)
        hostdevs = devices.findall("hostdev")
        if hostdevs:
            insert_after(element, hostdevs[-1])
            return
        later = (index for index, child in enumerate(devices) if child.tag in _AFTER_HOSTDEVS)
        insert(devices, next(later, len(devices)), element)

    def _mark_multifunction(self, slots: set[Slot], new: Sequence[PciAddress]) -> None:
        """Let function 0 of guest slots with several functions say so; only what was there before is news."""
        functions: dict[Slot, set[int]] = {}
        for address in used_addresses(self.domain):
            functions.setdefault(address[:3], set()).add(address.function)
        for element, hostdev in hostdev_elements(self.domain):
            guest = hostdev.guest
            if guest is None or guest.function or guest[:3] not in slots or len(functions[guest[:3]]) < 2:
                continue
            own = element.find("address")
            if own is not None and not hostdev.is_multifunction:
                own.set("multifunction", "on")
                if hostdev.source not in new:
                    self.single.add(hostdev.source)
                    self.changes.append(f"set multifunction='on' on guest address {guest}")
