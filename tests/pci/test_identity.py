"""Identities: a device is recognised wherever it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.pci.identity import Identity, serial_number
from virtpass.system.errors import UsageError

CARD = Identity(0x10DE, 0x1B80, 0x1462, 0x3362, "0011223344556677")


def config_space(*capabilities: tuple[int, bytes]) -> bytes:
    """Return a configuration space with extended capabilities, each (id, content after its header)."""
    space = bytearray(4096)
    offset = 0x100
    for position, (number, content) in enumerate(capabilities):
        following = 0 if position == len(capabilities) - 1 else offset + 0x40
        space[offset : offset + 4] = (number | 1 << 16 | following << 20).to_bytes(4, "little")
        space[offset + 4 : offset + 4 + len(content)] = content
        offset += 0x40
    return bytes(space)


def test_serial_number_behind_another_capability() -> None:
    space = config_space((0x0001, b"\xff" * 8), (0x0003, bytes.fromhex("7766554433221100")))
    assert serial_number(space) == "0011223344556677"


@pytest.mark.parametrize("content", [b"\0" * 8, b"\xff" * 8])
def test_a_serial_number_that_was_never_programmed_is_none(content: bytes) -> None:
    assert serial_number(config_space((0x0003, content))) == ""


def test_a_list_of_capabilities_that_runs_in_a_circle_ends() -> None:
    space = bytearray(4096)
    space[0x100:0x104] = (0x0001 | 0x140 << 20).to_bytes(4, "little")
    space[0x140:0x144] = (0x0002 | 0x100 << 20).to_bytes(4, "little")
    assert serial_number(bytes(space)) == ""


@given(st.binary(max_size=600))
def test_any_bytes_give_a_serial_number_or_none(config: bytes) -> None:
    assert len(serial_number(config)) in (0, 16)


def test_a_device_that_sleeps_and_shows_no_serial_number_is_the_same() -> None:
    assert CARD.is_same_device(Identity(*CARD[:4]))
    assert Identity(*CARD[:4]).is_same_device(CARD)


def test_its_twin_is_not() -> None:
    assert not CARD.is_same_device(Identity(*CARD[:4], "0011223344556678"))


def test_another_board_with_the_same_chip_is_not() -> None:
    assert not CARD.is_same_device(Identity(*CARD[:3], 0x3363))


@pytest.mark.parametrize("serial", ["0011", "00112233445566GG", "0011223344556677 "])
def test_what_is_no_serial_number_is_refused(serial: str) -> None:
    with pytest.raises(UsageError):
        Identity(1, 2, 3, 4, serial)
