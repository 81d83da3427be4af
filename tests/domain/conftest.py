"""What the tests of the libvirt layer share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from virtpass.system.libvirt import Connection


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """libvirt's own test driver, without domains and with a state of its own."""
    pytest.importorskip("libvirt")
    (tmp_path / "node.xml").write_text(
        """<node>
  <device><name>computer</name><capability type='system'>
    <hardware><uuid>11111111-2222-3333-4444-555555555555</uuid></hardware><firmware/></capability></device>
  <device><name>pci_0000_01_00_0</name><parent>computer</parent><capability type='pci'>
    <class>0x030000</class><domain>0</domain><bus>1</bus><slot>0</slot><function>0</function>
    <product id='0x1111'>card</product><vendor id='0x1234'>maker</vendor></capability></device>
</node>"""
    )
    with Connection.open(f"test://{tmp_path}/node.xml") as opened:
        yield opened
