"""The policy: what is known, how it is written, and that nothing else gets in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.documents import domain, hostdev, pci
from virtpass.binding.policy import (
    DEFAULT_POLICY,
    KNOWN_POLICY,
    LONGEST_WAIT,
    POLICY_KEYS,
    Policy,
    parse_policy,
)
from virtpass.domain.document import normalise
from virtpass.domain.metadata import parse_passthrough
from virtpass.domain.plan import plan_attach, plan_detach, plan_policy
from virtpass.domain.policy import changed, meaning, parse_settings, unlike
from virtpass.pci.identity import Identity
from virtpass.system.errors import RefusedError, UsageError

CARD = (pci("01:00.0"), Identity(0x1234, 0x1111, 0x1AF4, 0x1100))

VALUES = {**KNOWN_POLICY, "wait": tuple(map(str, range(LONGEST_WAIT + 1)))}
settings_of_all_kinds = st.fixed_dictionaries(
    {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
)


def test_the_defaults_are_the_least() -> None:
    policy = parse_policy({})
    assert policy == DEFAULT_POLICY == Policy()
    assert (policy.display, policy.companions, policy.huge_pages) == ("refuse", "bind", "no")
    assert (policy.isolate_cpus, policy.governor, policy.wait) == ("no", "keep", 15)


def test_each_value_is_read_by_its_own_name() -> None:
    policy = parse_policy(
        {
            "wait": "300",
            "governor": "performance",
            "isolate-cpus": "yes",
            "huge-pages": "yes",
            "companions": "free",
            "display": "hand-over",
        }
    )
    assert policy == Policy("hand-over", "free", "yes", "yes", "performance", 300)
    assert (policy.display, policy.companions, policy.huge_pages) == ("hand-over", "free", "yes")
    assert (policy.isolate_cpus, policy.governor, policy.wait) == ("yes", "performance", 300)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Policy().display = "hand-over"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Policy().anything = 1  # type: ignore[attr-defined]


@pytest.mark.property
@given(settings_of_all_kinds)
def test_what_is_known_is_kept_and_the_rest_is_the_default(settings: dict[str, str]) -> None:
    policy = parse_policy(settings)
    assert policy.attributes() == {**DEFAULT_POLICY.attributes(), **settings}
    assert parse_policy(policy.attributes()) == policy
    assert parse_policy(unlike(policy, DEFAULT_POLICY)) == policy
    assert parse_settings(f"{key}={value}" for key, value in settings.items()) == settings


@pytest.mark.property
@given(settings_of_all_kinds, settings_of_all_kinds)
def test_a_change_changes_what_it_names(first: dict[str, str], second: dict[str, str]) -> None:
    policy = changed(parse_policy(first), second)
    assert policy == parse_policy({**first, **second})
    assert changed(policy, second) == policy


@pytest.mark.property
@given(st.sampled_from(POLICY_KEYS) | st.text(), st.text() | st.integers(-400, 1000).map(str))
def test_nothing_else_is_let_in(key: str, value: str) -> None:
    if value in VALUES.get(key, ()):
        assert parse_policy({key: value}).attributes()[key] == value
        return
    with pytest.raises(UsageError) as caught:
        parse_policy({key: value})
    assert caught.value.exit_status == 2
    assert caught.value.line.isprintable()
    assert all(f"{known}=" in caught.value.remedy for known in POLICY_KEYS)


@pytest.mark.parametrize(
    "text",
    ["301", "-1", "+5", "05", "00", " 5", "5 ", "1e2", "1.0", "1_0", "0x5", "\u0661\u0665", "9" * 5000, ""],
)
def test_the_wait_is_a_whole_number_with_one_spelling(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy({"wait": text})
    assert "policy wait=" in caught.value.what
    assert "wait=0..300" in caught.value.remedy


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["wait"], "'wait' is not KEY=VALUE"),
        ([""], "'' is not KEY=VALUE"),
        (["wait=5", "display=refuse", "wait=5"], "policy wait is given twice"),
        (["wait=", "wait=15"], "policy wait is given twice"),
        (["display=ask"], "policy display=ask is not known"),
        (["screen=x"], "there is no key 'screen'"),
        (["screen="], "there is no key 'screen'"),
        (["=yes"], "there is no key ''"),
        (["huge_pages=yes"], "there is no key 'huge_pages'"),
        (["Display=refuse"], "there is no key 'Display'"),
        (["display=Refuse"], "policy display=Refuse is not known"),
        (["display=refuse=x"], "policy display=refuse=x is not known"),
        (["display=\x1b[31m\n"], "policy display=\\x1b[31m\\n is not known"),
    ],
)
def test_words_that_are_no_settings(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(words)
    assert reason in caught.value.what


@pytest.mark.parametrize("key", POLICY_KEYS)
def test_a_key_alone_stands_for_the_default(key: str) -> None:
    assert parse_settings([f"{key}="]) == {key: DEFAULT_POLICY.attributes()[key]}


def test_every_value_is_explained_in_the_documentation_in_the_same_words() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metadata.md").read_text()
    explained = {**KNOWN_POLICY, "wait": ("0", "15")}
    for key, values in explained.items():
        assert len({meaning(key, value) for value in values}) == len(values)
        for value in values:
            mark = "**" if DEFAULT_POLICY.attributes()[key] == value else ""
            assert f"| {mark}`{key}={value}`{mark} | {meaning(key, value)} |" in text


def attached(**policy: str) -> str:
    return plan_attach(domain(), [CARD], 9_000_000, policy=policy).after


def policy_of(xml: str) -> Policy:
    found = parse_passthrough(xml)
    assert found is not None
    return found.policy


def test_a_policy_comes_with_the_device() -> None:
    plan = plan_attach(domain(), [CARD], 9_000_000, policy={"display": "hand-over", "wait": "15"})
    assert policy_of(plan.after) == Policy(display="hand-over")
    assert plan.changes[-1] == "set policy display=hand-over instead of refuse"
    assert "unsaved work is lost" in plan.notes[-1]


def test_a_device_that_comes_later_leaves_the_policy_alone() -> None:
    other = (pci("02:00.0"), Identity(0x8086, 0x10D3, 0x8086, 0))
    plan = plan_attach(attached(wait="7"), [other], 9_000_000)
    assert policy_of(plan.after) == Policy(wait=7)


def test_a_policy_may_come_to_a_device_that_is_there() -> None:
    plan = plan_attach(attached(), [CARD], 9_000_000, policy={"governor": "performance"})
    assert plan.changes == ("set policy governor=performance instead of keep",)
    assert plan_attach(plan.after, [CARD], 9_000_000, policy={"governor": "performance"}).is_empty


def test_only_the_policy_changes() -> None:
    before = attached()
    plan = plan_policy(before, {"companions": "free", "wait": "0"})
    assert plan.changes == (
        "set policy companions=free instead of bind",
        "set policy wait=0 instead of 15",
    )
    assert [line for line in plan.diff.splitlines()[2:] if line[0] in "+-"] == [
        '-      <virtpass:policy display="refuse"/>',
        '+      <virtpass:policy display="refuse" companions="free" wait="0"/>',
    ]
    back = plan_policy(plan.after, {"companions": "bind", "wait": "15"})
    assert (back.after, back.notes) == (before, ())
    assert plan_policy(before, {"wait": "15"}).is_empty


def test_a_domain_of_ours_without_records_stays_ours() -> None:
    xml = domain(
        hostdev("01:00.0", "03:00.0"), metadata="<p:passthrough xmlns:p='urn:virtpass:passthrough:1'/>"
    )
    plan = plan_policy(xml, {"huge-pages": "yes"})
    assert policy_of(plan.after) == Policy(huge_pages="yes")
    assert plan_policy(plan.after, {"huge-pages": "no"}).after == normalise(xml)


def test_a_domain_that_is_not_ours_has_no_policy() -> None:
    with pytest.raises(RefusedError) as caught:
        plan_policy(domain(hostdev("01:00.0", "03:00.0")), {"wait": "1"})
    assert "virtpass domain adopt" in caught.value.remedy
    assert "virtpass domain attach" in caught.value.remedy


def test_a_policy_that_goes_with_the_last_device_is_named() -> None:
    plan = plan_detach(attached(wait="7"), [CARD[0]])
    assert plan.changes[-1] == "forget policy wait=7"
    assert "virtpass" not in plan.after
    assert "policy" not in "".join(plan_detach(attached(), [CARD[0]]).changes)


@pytest.mark.property
@given(settings_of_all_kinds)
def test_any_policy_there_and_back_leaves_the_same_bytes(settings: dict[str, str]) -> None:
    before = attached()
    there = plan_policy(before, settings)
    assert policy_of(there.after) == parse_policy(settings)
    assert plan_policy(there.after, DEFAULT_POLICY.attributes()).after == before
