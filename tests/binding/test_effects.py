"""What the log says of effects that are undone."""

from __future__ import annotations

import pytest

from tests.simulation import CARD, GUEST, NIC, SimulatedHost
from virtpass.binding import attributes, audio, display, effects, framebuffers, nvidia, steps, tuning
from virtpass.binding.journal import Home, Journal
from virtpass.system.errors import FailedError

CONTROL = f"/sys/bus/pci/devices/{CARD}/power/control"
KINDS = {
    *attributes.UNDO,
    *audio.UNDO,
    *display.UNDO,
    *framebuffers.UNDO,
    *nvidia.UNDO,
    *tuning.UNDO,
    steps.STEPS,
    steps.RUNNING,
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_effect_is_told_as_it_is_on_record(kind: str) -> None:
    fields = [f"field{number}" for number in range(8)]
    words = effects.in_words(kind, fields)
    assert kind.startswith("huge-pages-") or words != f"{kind} {' '.join(fields)}"


def test_what_was_undone_can_be_read(host: SimulatedHost) -> None:
    host.put(CONTROL, "auto\n")
    host.put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n")
    journal = Journal(host, GUEST, "guest")
    journal.begin([Home(NIC, "e1000e", None)])
    journal.add(
        ("attribute", CONTROL, "auto", "on"),
        ("huge-pages", GUEST, "2048", "-", "0", "0", "4", "0"),
        ("huge-pages-got", GUEST, "2048", "-", "0"),
    )
    told: list[tuple[str, str]] = []
    assert effects.undo(host, journal, tell=lambda step, detail, *_: told.append((step, detail))) == []
    assert told == [
        ("undo", "take huge pages of 2048 KiB back"),
        ("undo", f"set {CONTROL} back to auto"),
    ]


@pytest.mark.parametrize("record", [("attribute",), ("of tomorrow", "a", "b")])
def test_a_record_that_is_not_understood_is_shown(host: SimulatedHost, record: tuple[str, ...]) -> None:
    journal = Journal(host, GUEST, "guest")
    journal.begin([])
    journal.add(record)
    told: list[str] = []
    (problem,) = effects.undo(host, journal, tell=lambda _, detail, *__: told.append(detail))
    assert isinstance(problem, FailedError)
    assert [one.strip() for one in told] == [" ".join(record)]
