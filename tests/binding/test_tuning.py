"""The host is tuned for a domain and comes back as it was, whatever happens in between."""

import errno
import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.binding.test_faults import FaultyHost, Killed
from tests.simulation import GUEST, OTHER, SimulatedHost, add_processors, domain_xml
from virtpass.binding import effects, engine, governors, tuning
from virtpass.binding.cpu_lists import parse_list
from virtpass.binding.demand import Demand
from virtpass.binding.journal import Journal, read_journal
from virtpass.binding.processors import is_union
from virtpass.hook.request import parse_request
from virtpass.system.errors import FailedError, RefusedError, VirtpassError

POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"
LARGE = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
HUGE = "<memoryBacking><hugepages/></memoryBacking>"


def pinned(cpus: str) -> str:
    return f"<cputune><vcpupin vcpu='0' cpuset='{cpus}'/></cputune>"


def demand(xml: str = HUGE + pinned("2-3")) -> Demand:
    """A domain with 256 MiB, which are 128 pages."""
    return parse_request(domain_xml(tuning=xml)).demand


def plan(
    host: SimulatedHost, uuid: str = GUEST, xml: str = HUGE + pinned("2-3"), **policy: bool
) -> tuning.Plan:
    wanted = policy or {"pages": True, "isolate": True, "governor": True}
    return tuning.plan(
        host,
        uuid,
        demand(xml),
        huge_pages=wanted.get("pages", False),
        isolate_cpus=wanted.get("isolate", False),
        governor="performance" if wanted.get("governor") else "keep",
    )


def start(
    host: SimulatedHost, uuid: str = GUEST, xml: str = HUGE + pinned("2-3"), **policy: bool
) -> list[str]:
    made = plan(host, uuid, xml, **policy)
    journal = Journal(host, uuid, "guest" if uuid == GUEST else "other")
    journal.begin([])
    return tuning.take(host, journal, made)


def undo(host: SimulatedHost, uuid: str = GUEST) -> list[VirtpassError]:
    journal = read_journal(host, uuid)
    return effects.undo(host, journal) if journal else []


def stop(host: SimulatedHost, uuid: str = GUEST) -> None:
    assert undo(host, uuid) == []
    if journal := read_journal(host, uuid):
        journal.remove()


def state(host: SimulatedHost) -> dict[str, str | None]:
    """What tuning may change. A group that may use all CPUs is as one that has no list."""
    paths = [f"{pool}/{name}_hugepages" for pool in (POOL, LARGE) for name in ("nr", "free", "surplus")]
    paths += [f"/proc/irq/{number}/smp_affinity_list" for number in host.names("/proc/irq")]
    cpufreq = "/sys/devices/system/cpu/cpufreq"
    paths += [f"{cpufreq}/{policy}/scaling_governor" for policy in host.names(cpufreq)]
    seen = {path: host.read(path) for path in paths}
    for unit in ("user.slice", "system.slice", "init.scope", "machine.slice"):
        text = host.read(f"/sys/fs/cgroup/{unit}/cpuset.cpus")
        seen[unit] = None if text in ("", "0-7") else text
        for control in ("system.control", "transient"):
            directory = f"/run/systemd/{control}/{unit}.d"
            seen[directory] = ",".join(host.names(directory)) if host.exists(directory) else None
    return seen


@pytest.fixture
def host(host: SimulatedHost) -> SimulatedHost:
    add_processors(host)
    return host


def allowed(host: SimulatedHost, unit: str = "user.slice") -> str | None:
    return host.read(f"/sys/fs/cgroup/{unit}/cpuset.cpus")


def affinity(host: SimulatedHost, number: int) -> str | None:
    return host.read(f"/proc/irq/{number}/smp_affinity_list")


def governor(host: SimulatedHost, policy: int) -> str | None:
    return host.read(f"/sys/devices/system/cpu/cpufreq/policy{policy}/scaling_governor")


# all of it


def test_everything_is_taken_and_comes_back(host: SimulatedHost) -> None:
    before = state(host)
    foreseen = plan(host).sentences
    assert foreseen == [
        "reserve 128 huge pages of 2 MiB (256 MiB; 128 to be added)",
        "keep the host's programs off CPUs 2-3 (left to them: 0-1,4-7)",
        "move 4 interrupts off CPUs 2-3",
        "set the governor performance for CPUs 2-3",
    ]
    assert state(host) == before
    foreseen[2] += ", 1 of which cannot be moved"
    assert start(host) == foreseen
    assert host.count(POOL, "nr") == host.count(POOL, "free") == 128
    assert [allowed(host, unit) for unit in ("user.slice", "system.slice", "init.scope")] == ["0-1,4-7"] * 3
    assert allowed(host, "machine.slice") is None
    assert [affinity(host, number) for number in (0, 9, 30, 31, 32)] == [
        "0-7",
        "0-1",
        "0-1,4-7",
        "0-1,4-7",
        "4-5",
    ]
    assert [governor(host, policy) for policy in (0, 2, 4)] == ["powersave", "performance", "powersave"]
    stop(host)
    assert state(host) == before


def test_a_domain_without_such_a_policy_changes_and_asks_nothing(host: SimulatedHost) -> None:
    before = state(host)
    made = tuning.plan(host, GUEST, demand(""), huge_pages=False, isolate_cpus=False, governor="keep")
    assert made.sentences == []
    journal = Journal(host, GUEST, "guest")
    journal.begin([])
    assert tuning.take(host, journal, made) == []
    assert (journal.effects, state(host)) == ([], before)


def test_undoing_twice_is_undoing_once(host: SimulatedHost) -> None:
    before = state(host)
    start(host)
    assert undo(host) == []
    assert undo(host) == []
    assert state(host) == before


def test_what_is_not_understood_is_refused_when_it_is_asked_for(host: SimulatedHost) -> None:
    with pytest.raises(VirtpassError, match="is not a list"):
        plan(host, xml=pinned("2-"), governor=True)


KINDS = ("error", "kill before", "kill after", "kill within")


class FaultyTunedHost(FaultyHost):
    """One on which running systemctl may fail too, and rewriting a record."""

    def run(self, argv: list[str], deadline: float) -> int | None:
        status: list[int | None] = []
        try:
            self._effect(lambda: status.append(super(FaultyTunedHost, self).run(argv, deadline)))
        except OSError:
            return 1
        return status[0]

    def replace_own(self, directory: str, name: str, content: bytes, mode: int) -> None:
        self._effect(lambda: super(FaultyTunedHost, self).replace_own(directory, name, content, mode))

    def remove_directory(self, directory: str) -> bool:
        removed: list[bool] = []
        self._effect(lambda: removed.append(super(FaultyTunedHost, self).remove_directory(directory)))
        return removed[0]


def faulty(host: SimulatedHost, at: int, kind: str) -> FaultyTunedHost:
    made = FaultyTunedHost(host.root, at, kind)
    made.fixed_interrupts = host.fixed_interrupts
    return made


def fresh_host(root: str) -> SimulatedHost:
    made = SimulatedHost(root)
    add_processors(made)
    # Pages that others use and have reserved.
    made.put(f"{POOL}/nr_hugepages", "40\n")
    made.put(f"{POOL}/free_hugepages", "10\n")
    return made


def each_fault(
    root: str, prepare: Callable[[SimulatedHost], object], act: Callable[[SimulatedHost], object], kind: str
) -> list[tuple[SimulatedHost, dict[str, str | None]]]:
    """Run something with a fault at each of its effects; return the hosts and how they were before."""
    found = []
    at = 0
    while True:
        at += 1
        host = fresh_host(f"{root}/{at}")
        before = state(host)
        prepare(host)
        broken = faulty(host, at, kind)
        try:
            act(broken)
        except (Killed, OSError, VirtpassError):
            pass
        if not broken.reached:
            break
        found.append((SimulatedHost(host.root), before))
    assert len(found) > 8
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_taking_cut_off_anywhere(tmp_path: str, kind: str) -> None:
    def act(host: SimulatedHost) -> None:
        try:
            start(host)
        except (OSError, VirtpassError):
            undo(host)

    for host, before in each_fault(str(tmp_path), lambda _: None, act, kind):
        stop(host)
        assert state(host) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_undoing_cut_off_anywhere(tmp_path: str, kind: str) -> None:
    for host, before in each_fault(str(tmp_path), start, undo, kind):
        assert undo(host) == []
        stop(host)
        assert state(host) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [GUEST, OTHER])
def test_beside_another_domain_cut_off_anywhere(tmp_path: str, kind: str, first: str) -> None:
    def act(host: SimulatedHost) -> None:
        start(host, OTHER, HUGE + pinned("4-5"))

    for host, before in each_fault(str(tmp_path), start, act, kind):
        stop(host, first)
        stop(host, OTHER if first == GUEST else GUEST)
        assert state(host) == before


# two domains


THIRD = "00000000-0000-4000-8000-000000000003"
CPUS = {GUEST: "2-3", OTHER: "4-5", THIRD: "6"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(CPUS)), max_size=14))
def test_any_number_of_domains_come_and_go(
    tmp_path_factory: pytest.TempPathFactory, turns: list[str]
) -> None:
    host = fresh_host(str(tmp_path_factory.mktemp("host")))
    before = state(host)
    running: set[str] = set()
    for uuid in turns:
        if uuid in running:
            stop(host, uuid)
            running.remove(uuid)
        else:
            start(host, uuid, HUGE + pinned(CPUS[uuid]))
            running.add(uuid)
        taken = frozenset().union(*(parse_list(CPUS[one]) for one in running))
        for unit in ("user.slice", "system.slice", "init.scope"):
            assert parse_list(allowed(host, unit) or "0-7") == parse_list("0-7") - taken
        for number, base in ((9, "0-1"), (30, "0-7"), (31, "2-3"), (32, "2-5")):
            present = parse_list(affinity(host, number) or "")
            assert present and not present & taken
            assert parse_list(base) - taken in (present, frozenset())
    for uuid in sorted(running):
        stop(host, uuid)
    assert state(host) == before


@pytest.mark.parametrize("order", [(GUEST, OTHER), (OTHER, GUEST)])
def test_two_domains_come_and_go_in_any_order(host: SimulatedHost, order: tuple[str, str]) -> None:
    before = state(host)
    start(host, GUEST)
    start(host, OTHER, HUGE + pinned("4-5"))
    assert host.count(POOL, "nr") == 256
    assert allowed(host) == "0-1,6-7"
    assert affinity(host, 32) == "0-1,6-7"
    stop(host, order[0])
    # What the one gives back is not what the other has.
    assert host.count(POOL, "nr") == 128
    assert allowed(host) == ("0-3,6-7" if order[0] == GUEST else "0-1,4-7")
    assert affinity(host, 32) == ("2-3" if order[0] == GUEST else "4-5")
    stop(host, order[1])
    assert state(host) == before


def test_a_domain_in_the_middle_of_its_start_keeps_its_free_pages(host: SimulatedHost) -> None:
    start(host, GUEST, pages=True)
    # Its 128 pages are free until its process takes them.
    start(host, OTHER, pages=True)
    assert host.count(POOL, "free") == 256
    stop(host, OTHER)
    host.use_pages(128)
    start(host, OTHER, pages=True)
    assert host.count(POOL, "free") == 128


def test_two_domains_cannot_have_the_same_cpu(host: SimulatedHost) -> None:
    start(host)
    with pytest.raises(RefusedError, match="CPUs 3 are kept for the domain guest already"):
        plan(host, OTHER, pinned("3-4"), isolate=True)


def test_two_domains_on_one_frequency_policy(host: SimulatedHost) -> None:
    start(host, GUEST, pinned("2"), governor=True)
    start(host, OTHER, pinned("3"), governor=True)
    stop(host, GUEST)
    assert governor(host, 2) == "performance"
    stop(host, OTHER)
    assert governor(host, 2) == "powersave"


# huge pages


def test_only_what_free_pages_lack_is_added(host: SimulatedHost) -> None:
    host.put(f"{POOL}/nr_hugepages", "100\n")
    host.put(f"{POOL}/free_hugepages", "60\n")
    host.put(f"{POOL}/resv_hugepages", "10\n")
    (sentence,) = start(host, pages=True)
    assert sentence == "reserve 128 huge pages of 2 MiB (256 MiB; 78 to be added)"
    assert (host.count(POOL, "nr"), host.count(POOL, "free")) == (178, 138)
    stop(host)
    assert (host.count(POOL, "nr"), host.count(POOL, "free")) == (100, 60)


def test_a_pool_that_suffices_is_not_touched(host: SimulatedHost) -> None:
    host.put(f"{POOL}/nr_hugepages", "128\n")
    host.put(f"{POOL}/free_hugepages", "128\n")
    start(host, pages=True)
    stop(host)
    assert host.calls == []


@pytest.mark.parametrize("others", [50, -30, -100])
def test_exactly_what_was_added_is_taken_back(host: SimulatedHost, others: int) -> None:
    host.write_attribute(f"{POOL}/nr_hugepages", "200", 1)
    host.use_pages(200)
    start(host, pages=True)
    host.write_attribute(f"{POOL}/nr_hugepages", str(328 + others), 1)
    assert undo(host) == []
    assert undo(host) == []
    assert host.count(POOL, "nr") - host.count(POOL, "surplus") == 200 + others
    # Nobody loses what he uses.
    assert host.count(POOL, "nr") - host.count(POOL, "free") == 200


def test_giving_back_is_not_repeated_when_others_add_as_many(host: SimulatedHost) -> None:
    start(host, pages=True)
    undo(host)
    host.write_attribute(f"{POOL}/nr_hugepages", "128", 1)
    undo(host)
    assert host.count(POOL, "nr") == 128


def test_pages_that_somebody_uses_by_then_go_when_he_does(host: SimulatedHost) -> None:
    start(host, pages=True)
    host.use_pages(20)
    stop(host)
    assert (host.count(POOL, "nr"), host.count(POOL, "free")) == (20, 0)
    host.use_pages(-20)
    assert host.count(POOL, "nr") == 0


def test_surplus_pages_of_others_are_none_for_the_domain(host: SimulatedHost) -> None:
    host.put(f"{POOL}/nr_hugepages", "30\n")
    host.put(f"{POOL}/surplus_hugepages", "30\n")
    start(host, pages=True)
    assert (host.count(POOL, "nr"), host.count(POOL, "free")) == (158, 128)
    stop(host)
    assert (host.count(POOL, "nr"), host.count(POOL, "surplus")) == (30, 30)


def test_fragmented_memory_is_compacted_once(host: SimulatedHost) -> None:
    host.memory, host.compacted = 90, 200
    start(host, pages=True)
    assert host.count(POOL, "free") == 128
    assert [path for path, _ in host.calls].count("/proc/sys/vm/compact_memory") == 1


def test_too_few_pages_are_refused_and_given_back(host: SimulatedHost) -> None:
    host.memory, host.compacted = 90, 100
    before = state(host)
    with pytest.raises(RefusedError, match="needs 256 MiB, got 200 MiB; free memory, or reserve at boot"):
        start(host, pages=True)
    stop(host)
    assert state(host) == before


def test_more_than_the_host_has_is_refused_before_anything_is_written(host: SimulatedHost) -> None:
    host.put("/proc/meminfo", "MemAvailable: 102400 kB\nHugepagesize: 2048 kB\n")
    with pytest.raises(RefusedError, match="needs 256 MiB more, and 100 MiB of memory are available"):
        plan(host, pages=True)


def test_a_domain_without_huge_pages_is_told_what_to_add(host: SimulatedHost) -> None:
    with pytest.raises(RefusedError, match="add <memoryBacking><hugepages/></memoryBacking>"):
        plan(host, xml="", pages=True)


def test_a_page_size_that_the_host_lacks(host: SimulatedHost) -> None:
    xml = "<memoryBacking><hugepages><page size='16' unit='M'/></hugepages></memoryBacking>"
    with pytest.raises(RefusedError, match="no huge pages of 16384 KiB; its sizes: 2048 KiB, 1048576 KiB"):
        plan(host, xml=xml, pages=True)


def test_part_of_a_page_takes_a_page(host: SimulatedHost) -> None:
    xml = "<memoryBacking><hugepages><page size='1' unit='GiB'/></hugepages></memoryBacking>"
    start(host, xml=xml, pages=True)
    assert (host.count(LARGE, "nr"), host.count(POOL, "nr")) == (1, 0)


def nodes_of(host: SimulatedHost, size: int = 2048) -> list[int]:
    above = "/sys/devices/system/node"
    return [host.count(f"{above}/node{node}/hugepages/hugepages-{size}kB", "nr") for node in (0, 1)]


@pytest.mark.parametrize(
    ("numatune", "counts"),
    [
        ("<numatune><memory mode='strict' nodeset='1'/></numatune>", [0, 128]),
        ("<numatune><memory mode='interleave' nodeset='0-1'/></numatune>", [64, 64]),
        ("<numatune><memory mode='preferred' nodeset='1'/></numatune>", [64, 64]),
    ],
)
def test_pages_come_from_the_nodes_of_the_memory(
    host: SimulatedHost, numatune: str, counts: list[int]
) -> None:
    add_processors(host, nodes=2)
    start(host, xml=HUGE + numatune, pages=True)
    assert nodes_of(host) == counts
    stop(host)
    assert nodes_of(host) == [0, 0]
    assert host.count(POOL, "nr") == 0


def test_each_node_of_the_guest_has_its_page_size_and_its_node_of_the_host(host: SimulatedHost) -> None:
    add_processors(host, nodes=2)
    xml = (
        "<memoryBacking><hugepages><page size='1' unit='G' nodeset='0'/><page size='2' unit='M' nodeset='1'/>"
        "</hugepages></memoryBacking><numatune><memory mode='strict' nodeset='0'/>"
        "<memnode cellid='1' mode='strict' nodeset='1'/></numatune><cpu><numa>"
        "<cell id='0' memory='2' unit='GiB'/><cell id='1' memory='8' unit='MiB'/>"
        "<cell id='2' memory='8' unit='MiB'/></numa></cpu>"
    )
    start(host, xml=xml, pages=True)
    assert nodes_of(host, 1 << 20) == [2, 0]
    assert nodes_of(host) == [0, 4]


def test_a_node_that_the_host_lacks(host: SimulatedHost) -> None:
    add_processors(host, nodes=2)
    with pytest.raises(RefusedError, match="no NUMA node 5"):
        plan(host, xml=HUGE + "<numatune><memory mode='strict' nodeset='5'/></numatune>", pages=True)


# processors


def test_a_domain_that_is_not_pinned_is_told_what_to_add(host: SimulatedHost) -> None:
    with pytest.raises(RefusedError, match="add <cputune><vcpupin"):
        plan(host, xml="", isolate=True)


@pytest.mark.parametrize(
    ("path", "content", "cpus", "message"),
    [
        (None, "", "0-7", "the host would have none"),
        (None, "", "7-8", "pinned to CPUs 8, which are not online"),
        ("/sys/fs/cgroup/system.slice/cpuset.cpus", "2-3\n", "2-3", "all that system.slice may run on"),
        ("/sys/fs/cgroup/cgroup.controllers", "memory pids\n", "2-3", "version 2"),
        ("/sys/devices/system/cpu/online", "0-2,4-7\n", "2-3", "pinned to CPUs 3, which are not online"),
    ],
)
def test_what_cannot_be_isolated(
    host: SimulatedHost, path: str | None, content: str, cpus: str, message: str
) -> None:
    if path is not None:
        host.put(path, content)
    before = state(host)
    with pytest.raises(RefusedError, match=message):
        plan(host, xml=pinned(cpus), isolate=True)
    assert state(host) == before


def test_a_limit_that_was_there_comes_back_without_a_drop_in(host: SimulatedHost) -> None:
    host.put("/sys/fs/cgroup/system.slice/cpuset.cpus", "0-5\n")
    before = state(host)
    start(host, isolate=True)
    assert allowed(host, "system.slice") == "0-1,4-5"
    stop(host)
    assert state(host) == before


def test_a_drop_in_that_was_there_stays(host: SimulatedHost) -> None:
    host.run(["/usr/bin/systemctl", "set-property", "--runtime", "user.slice", "AllowedCPUs=0-5"], 1)
    before = state(host)
    text = host.read("/run/systemd/system.control/user.slice.d/50-AllowedCPUs.conf")
    start(host, isolate=True)
    stop(host)
    assert state(host) == before
    assert host.read("/run/systemd/system.control/user.slice.d/50-AllowedCPUs.conf") == text


def test_other_drop_ins_beside_ours_stay(host: SimulatedHost) -> None:
    host.put("/run/systemd/system.control/user.slice.d/50-CPUWeight.conf", "[Slice]\nCPUWeight=50\n")
    before = state(host)
    start(host, isolate=True)
    stop(host)
    assert state(host) == before


def test_a_slice_in_which_nothing_runs_is_limited_for_who_logs_in_later(
    host: SimulatedHost,
) -> None:
    host.remove_own("/sys/fs/cgroup/user.slice", "cgroup.procs")
    host.remove_directory("/sys/fs/cgroup/user.slice")
    before = state(host)
    start(host, isolate=True)
    drop_in = host.read("/run/systemd/system.control/user.slice.d/50-AllowedCPUs.conf") or ""
    assert "AllowedCPUs=0-1,4-7" in drop_in
    stop(host)
    assert state(host) == before


def test_what_somebody_else_has_set_since_stays(host: SimulatedHost) -> None:
    start(host)
    host.run(["/usr/bin/systemctl", "set-property", "--runtime", "user.slice", "AllowedCPUs=0"], 1)
    host.write_attribute("/proc/irq/30/smp_affinity_list", "5", 1)
    host.put("/sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "userspace\n")
    stop(host)
    assert (allowed(host), affinity(host, 30), governor(host, 2)) == ("0", "5", "userspace")
    assert allowed(host, "system.slice") == "0-7"
    assert affinity(host, 31) == "2-3"


def test_interrupts_that_have_gone_are_no_problem(host: SimulatedHost) -> None:
    start(host)
    host.remove_own("/proc/irq/31", "smp_affinity_list")
    stop(host)


def test_systemd_that_fails_is_told_and_the_undo_is_tried_again_later(host: SimulatedHost) -> None:
    before = state(host)
    start(host)
    host.has_systemd_failing = True
    assert {problem.reference for problem in undo(host)} == {"allowed-cpus"}
    host.has_systemd_failing = False
    stop(host)
    assert state(host) == before


def test_systemd_that_does_not_do_what_it_says(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.binding.isolation._SETTLING", 0.0)
    monkeypatch.setattr(host, "run", lambda argv, deadline: 0)
    with pytest.raises(FailedError, match=r"systemd did not limit user\.slice to CPUs 0-1,4-7"):
        start(host, isolate=True)


def test_a_host_without_frequency_policies_is_no_reason_to_refuse(host: SimulatedHost) -> None:
    for policy in (0, 2, 4, 6):
        host.put(f"/sys/devices/system/cpu/cpufreq/policy{policy}/scaling_available_governors", "schedutil\n")
    assert start(host, governor=True) == ["no governor performance on this host: the CPUs keep theirs"]


def test_without_pinning_all_cpus_have_the_governor(host: SimulatedHost) -> None:
    start(host, xml="", governor=True)
    assert [governor(host, policy) for policy in (0, 2, 4, 6)] == ["performance"] * 4
    stop(host)
    assert [governor(host, policy) for policy in (0, 2, 4, 6)] == ["powersave"] * 4


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("governors", "the governor of policy2 is not set"),
        ("interrupts", "interrupt 0 is not moved"),
    ],
)
def test_without_time_nothing_more_is_written(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, part: str, words: str
) -> None:
    before = state(host)
    monkeypatch.setattr(f"virtpass.binding.{part}.BOUND", 0.0)
    with pytest.raises(FailedError, match=f"{words}: the others have taken 0 s"):
        start(host, governor=part == "governors", isolate=part == "interrupts")
    assert host.calls == []
    stop(host)
    assert state(host) == before


def test_a_governor_that_is_as_it_was_is_not_written(host: SimulatedHost) -> None:
    governors.put_back(host, (GUEST, "policy2", "powersave"))
    host.put("/sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "performance\n")
    governors.put_back(host, (GUEST, "policy2", "performance"))
    assert host.calls == []


# records that are none


@pytest.mark.parametrize(
    "effect",
    [
        ("huge-pages", GUEST, "../../2048", "-", "0", "128", "128", "0"),
        ("huge-pages", GUEST, "2048", "0/../..", "0", "128", "128", "0"),
        ("huge-pages", "../x", "2048", "-", "0", "128", "128", "0"),
        ("allowed-cpus", GUEST, "2-3", "machine.slice", "", "no"),
        ("allowed-cpus", GUEST, "2-3", "--property", "", "no"),
        ("allowed-cpus", GUEST, "x", "user.slice", "", "no"),
        ("interrupt", GUEST, "2-3", "../9", "0-7", "0-1"),
        ("interrupt", GUEST, "2-3", "9", "", "0-1"),
        ("governor", GUEST, "policy0/../x", "powersave"),
        ("governor", GUEST, "policy0"),
    ],
)
def test_a_record_that_cannot_be_ours_changes_nothing(host: SimulatedHost, effect: tuple[str, ...]) -> None:
    before = state(host)
    journal = Journal(host, GUEST, "guest")
    journal.begin([])
    journal.add(effect)
    assert len(undo(host)) == 1
    assert state(host) == before


# what can be undone no more


CPU_SETS = st.frozensets(st.integers(0, 5))


@given(CPU_SETS, st.lists(CPU_SETS, max_size=6))
def test_what_domains_take_away_is_a_union_of_some_of_theirs(
    taken: frozenset[int], sets: list[frozenset[int]]
) -> None:
    unions = {frozenset[int]()}
    for one in sets:
        unions |= {union | one for union in unions}
    assert is_union(taken, sets) == (taken in unions)


def test_many_domains_are_looked_at_in_no_time() -> None:
    sets = [frozenset((number,)) for number in range(200)]
    assert is_union(frozenset(range(100)), sets)
    assert not is_union(frozenset((500,)), sets)


def refuse_writes(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, end: str, number: int) -> None:
    write = host.write_attribute

    def refuse(path: str, value: str, deadline: float) -> None:
        if path.endswith(end):
            raise OSError(number, os.strerror(number), path)
        write(path, value, deadline)

    monkeypatch.setattr(host, "write_attribute", refuse)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("/32/smp_affinity_list", "interrupt 32 cannot go to CPUs 2-5 again"),
        ("/policy2/scaling_governor", "the governor of policy2 cannot be powersave again"),
    ],
)
def test_what_can_never_be_put_back_is_told_and_keeps_no_record(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, end: str, words: str
) -> None:
    start(host)
    refuse_writes(host, monkeypatch, end, errno.EINVAL)
    journal = read_journal(host, GUEST)
    assert journal is not None
    problems = engine.give_back(host, journal)
    assert [problem.what for problem in problems] == [f"{words}: Invalid argument; it stays as it is"]
    assert engine.lasting(problems) == []
    assert read_journal(host, GUEST) is None


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ETIMEDOUT])
def test_what_may_be_put_back_later_stays_on_record(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = state(host)
    start(host)
    with monkeypatch.context() as patch:
        refuse_writes(host, patch, "/policy2/scaling_governor", number)
        assert len(undo(host)) == 1
    stop(host)
    assert state(host) == before
