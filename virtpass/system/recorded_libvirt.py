"""libvirt as a snapshot has it; what asks it does not know the difference."""

from typing import NoReturn

from virtpass.system.errors import NotFoundError, PermissionDeniedError, RefusedError, UnavailableError
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM, Addressed, Connection, Domain
from virtpass.system.recorded import RecordedDomainState, RecordedHost, RecordedLibvirt


def connect(host: Host, uri: str = SYSTEM, *, deadline: float | None = None) -> Connection:
    """Connect to the libvirt of a host: to what a snapshot knows of it, else to the daemon.

    Raises:
        UnavailableError, PermissionDeniedError, UsageError: as `Connection.open`; for a snapshot, as it was
            when it was taken.
    """
    if not isinstance(host, RecordedHost):
        return Connection.open(uri, deadline=deadline)
    if host.libvirt.problem is not None:
        kind = PermissionDeniedError if host.libvirt.is_refused else UnavailableError
        raise kind(*host.libvirt.problem)
    return RecordedConnection(host.libvirt)


class RecordedDomain(Domain):
    """A domain in a snapshot."""

    def __init__(self, state: RecordedDomainState) -> None:
        self.name = state.name
        self.uuid = state.uuid
        self.is_active = state.is_active
        self.is_persistent = state.is_persistent
        self.has_saved_state = state.has_saved_state
        self._text = state.xml

    def inactive_xml(self) -> str:
        return self._text

    def shown_xml(self) -> str:
        return self._text

    def live_xml(self) -> str:
        return self._text


class RecordedConnection(Connection):
    """The libvirt of a snapshot; nothing can be changed there."""

    def __init__(self, recorded: RecordedLibvirt) -> None:
        self.uri = "the snapshot"
        self._recorded = recorded

    def close(self) -> None:
        """Do nothing: there is nobody on the other side."""

    @property
    def version(self) -> int:
        """Version of libvirt on the host."""
        return self._recorded.version

    def domains(self) -> list[Domain]:
        return [RecordedDomain(one) for one in self._recorded.domains]

    def domain(self, name: str) -> Domain:
        domains = self.domains()
        for found in (
            *(one for one in domains if one.name == name),
            *(one for one in domains if one.uuid == name),
        ):
            return found
        raise NotFoundError(
            "no-domain",
            f"there is no domain '{name}' in the snapshot",
            f"there are: {', '.join(one.name for one in domains) or 'none'}",
        )

    def active_uuids(self) -> frozenset[str]:
        return frozenset(one.uuid for one in self._recorded.domains if one.is_active)

    def define(self, xml: str, *, validate: bool = True) -> NoReturn:
        _refuse()

    def detach_node_device(self, address: Addressed) -> NoReturn:
        _refuse()

    def reattach_node_device(self, address: Addressed) -> NoReturn:
        _refuse()

    def reset_node_device(self, address: Addressed) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise RefusedError("snapshot", "a snapshot is only looked at", "run the command on the host itself")
