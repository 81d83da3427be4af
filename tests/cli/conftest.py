"""What several tests of the commands need."""

from collections.abc import Iterator

import pytest

from tests.cli.test_commands import TEST_DRIVER
from tests.domain import documents
from virtpass.system.libvirt import Connection


@pytest.fixture
def libvirt() -> Iterator[Connection]:
    """libvirt's own test driver, whose state lasts as long as this connection, with a domain."""
    pytest.importorskip("libvirt")
    with Connection.open(TEST_DRIVER) as connection:
        connection.define(documents.domain(kind="test"), validate=False)
        yield connection
