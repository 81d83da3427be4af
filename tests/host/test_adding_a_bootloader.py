"""The example in docs/adding-a-bootloader.md goes through what every host of the matrix goes through."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from tests.host import test_row_faults, test_rows
from tests.host.rows import Row
from tests.transaction.faults import install
from virtpass.host import loaders, prepare
from virtpass.host.boot import Loader
from virtpass.host.facts import read_facts
from virtpass.operations import host_preparation
from virtpass.system.errors import RefusedError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-bootloader.md"

images_are_lists, memory = test_rows.images_are_lists, test_row_faults.memory


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def loaded(name: str, text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return what a module with this text defines."""
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.fixture
def lantern(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Add the loader of the page to those that virtpass knows."""
    text, _ = blocks("python")
    found = loaded("lantern", text, tmp_path_factory.mktemp("module"), monkeypatch)["Lantern"]
    assert isinstance(found, type)
    loader: Loader = found()
    everything = (*loaders.LOADERS, loader)
    for module in (loaders, prepare, host_preparation):
        monkeypatch.setattr(module, "LOADERS", everything)
    return loader


@pytest.fixture
def row(lantern: Loader, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Row:
    """Return the host of the page."""
    _, text = blocks("python")
    rows = loaded("rows_lantern", text, tmp_path_factory.mktemp("module"), monkeypatch)["ROWS"]
    assert isinstance(rows, tuple)
    (one,) = rows
    assert isinstance(one, Row)
    return one


def test_the_plan_is_the_one_on_the_page(row: Row, lantern: Loader, tmp_path: Path) -> None:
    host = test_rows.ready(row, tmp_path)
    plan = host_preparation.plan(host, test_rows.wishes(row, host))
    assert plan.loader is lantern
    (shown,) = blocks("diff")
    assert test_rows.text_of(plan) == shown


def test_it_goes_through_what_every_host_goes_through(row: Row, tmp_path: Path) -> None:
    for number, test in enumerate(
        (
            test_rows.test_apply_again_changes_nothing_and_revert_leaves_no_trace,
            test_rows.test_other_wishes_take_the_place_of_the_first,
            test_rows.test_a_command_that_fails_leaves_the_tree_as_it_was,
        )
    ):
        test(row, tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("turn", range(len(test_row_faults.KINDS)))
@pytest.mark.parametrize("operation", ["apply", "revert"])
def test_it_may_be_cut_off_anywhere(
    row: Row, operation: str, turn: int, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host alone has this loader, so each effect meets each kind here."""
    test_row_faults.cut_off_anywhere(row, operation, memory, install(monkeypatch), turn=turn)


def test_there_is_no_trial(row: Row, tmp_path: Path) -> None:
    host = test_rows.ready(row, tmp_path)
    with pytest.raises(RefusedError, match="exactly once"):
        host_preparation.plan(host, test_rows.wishes(row, host, trial=True))


def test_without_an_entry_to_repeat_it_says_that_there_is_no_way_back(
    row: Row, lantern: Loader, tmp_path: Path
) -> None:
    host = test_rows.ready(row, tmp_path)
    (tmp_path / "boot/lantern.menu").write_text("# empty\n")
    assert lantern.entries(read_facts(host)) == []
    request = host_preparation.plan(host, test_rows.wishes(row, host)).request
    assert [note.reference for note in lantern.plan(read_facts(host), request).notes] == ["no-fallback"]
