"""What many tests need."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.simulation import SimulatedHost, desktop

# How long an example takes says something about the machine, not about virtpass.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let expected plans be written anew."""
    parser.addoption("--golden", action="store_true", help="write the golden files of tests/host anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the lab last: whatever a fast test finds shows minutes earlier."""
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what shows after a power cut only: that is for the lab."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    """A host with a card, twin NICs, a boot disk and a group that cannot be split."""
    return desktop(str(tmp_path))
