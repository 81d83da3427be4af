"""What many tests need."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.simulation import SimulatedHost, desktop
from virtpass.system.worker import Worker

# How long an example takes says something about the machine, not about virtpass.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Files of the lab that take five minutes or more, the longest first.
LONGEST = (
    "test_preparation_systemd_boot.py",
    "test_survival.py",
    "test_hand_over.py",
    "test_preparation_grub_bios.py",
    "test_setup_over_a_reboot.py",
    "test_desktop.py",
    "test_services.py",
    "test_faults.py",
    "test_functions.py",
    "test_processors.py",
    "test_framebuffers.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let expected plans be written anew."""
    parser.addoption("--golden", action="store_true", help="write the golden files of tests/host anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the lab last: whatever a fast test finds shows minutes earlier.

    What takes longest comes first in it, so that nobody waits for the last one at the end.
    """
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("lab") is None:
        return 0
    return LONGEST.index(item.path.name) + 1 if item.path.name in LONGEST else len(LONGEST) + 1


@pytest.fixture(autouse=True)
def _nothing_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what shows after a power cut only: that is for the lab."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the children in which hosts make accesses; one that a test has left hanging is left alone."""
    made: list[Worker] = []
    begin = Worker.__init__

    def begun(worker: Worker) -> None:
        begin(worker)
        made.append(worker)

    monkeypatch.setattr(Worker, "__init__", begun)
    yield
    for worker in made:
        worker.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    """A host with a card, twin NICs, a boot disk and a group that cannot be split."""
    found = desktop(str(tmp_path))
    yield found
    found.close()
