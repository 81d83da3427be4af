"""systemd-boot with kernelstub: Pop!_OS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.systemd_boot_trees import OURS, REQUEST, ROWS, applied, loader_of, made, put, refusal
from virtpass.host.edits import compose
from virtpass.host.forms import Form, JsonTokens, form_from_json, form_to_json
from virtpass.system.errors import RefusedError


def test_kernelstub_writes_the_file_as_we_have_left_it(tmp_path: Path) -> None:
    row = ROWS["pop-os"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [command.argv for command in plan.commands] == [("kernelstub",)]
    (change, *_) = compose(facts.host, plan.edits, {}).changes
    assert change.after is not None
    applied(row, facts.host, plan)
    assert facts.host.read_bytes("/etc/kernelstub/configuration") == change.after.content
    assert json.loads(change.after.content)["user"]["kernel_options"][-2:] == list(OURS)


@pytest.mark.parametrize("name", ["manage_mode", "setup_loader", "unified_kernel"])
def test_kernelstub_in_other_modes_is_refused(name: str, tmp_path: Path) -> None:
    row, path = ROWS["pop-os"], "/etc/kernelstub/configuration"
    facts = made(row, tmp_path)
    data = json.loads(facts.text(path))
    data["user"][name] = not data["user"].get(name, False)
    assert refusal(loader_of(row), put(facts, path, json.dumps(data, indent=2))) == "kernelstub-mode"


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        (lambda text: text + "\n", "kernelstub-layout"),
        (lambda text: text.replace("  ", "\t"), "kernelstub-layout"),
        (lambda text: text[:-1], "not-json"),
        (lambda text: "[]", "not-json"),
        (lambda text: text.replace('      "loglevel=0",\n', ""), "entry-differs"),
    ],
)
def test_kernelstub_files_that_are_not_as_it_writes_them_are_refused(
    change: object, reference: str, tmp_path: Path
) -> None:
    row, path = ROWS["pop-os"], "/etc/kernelstub/configuration"
    facts = made(row, tmp_path)
    assert callable(change)
    assert refusal(loader_of(row), put(facts, path, change(facts.text(path)))) == reference


_WORDS = st.text('abc=\\"é\n,]{} ', min_size=1, max_size=6)
_LAYOUTS = st.sampled_from([None, 0, 1, 2, 4, "\t"])


@settings(max_examples=200, deadline=None)
@given(st.lists(_WORDS, max_size=4), _LAYOUTS, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_list_in_json_is_edited_without_loss(
    words: list[str], indent: int | str | None, is_ascii: bool, is_last: bool, end: str
) -> None:
    data = {"default": {"options": ["quiet"]}, "user": {"options": words}}
    if not is_last:
        data["user"]["other"] = ['x", "options": [']
    text = json.dumps(data, indent=indent, ensure_ascii=is_ascii).replace("\n", end)
    base = text.encode()
    form = JsonTokens(("user", "options"), OURS).for_base(base)
    assert form_from_json(json.loads(json.dumps(form_to_json(form)))) == form
    after = form.add(base)
    assert json.loads(after)["user"]["options"] == [*words, *OURS]
    assert json.loads(after)["default"] == data["default"]
    assert form.add(after) == after
    assert form.remove(after) == base
    if indent == 2 and end == "\n":
        data["user"]["options"] = [*words, *OURS]
        assert after.decode() == json.dumps(data, indent=2, ensure_ascii=is_ascii)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"user": {}}', b'{"user": {"options": "a b"}}', b'{"user": {"options": [1]}}', b"\xff{}"],
)
def test_other_json_is_refused_and_left_alone(content: bytes) -> None:
    form: Form = JsonTokens(("user", "options"), OURS)
    with pytest.raises(RefusedError):
        form.add(content)
    assert form.remove(content) == content


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(RefusedError):
        JsonTokens(("a",), OURS).add(b'{"a": [], "a": []}')
