"""GRUB, extlinux, Limine and rEFInd: plans, what comes of them, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.host import rows_grub
from tests.host.rows import Link, Programs, Row, build
from tests.host.rows_grub import ROOT, ROWS
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootPlan, BootRequest, Loader, Role
from virtpass.host.detect import choose
from virtpass.host.facts import read_facts
from virtpass.host.forms import MarkedBlock, OwnFile
from virtpass.host.loaders import LOADERS
from virtpass.host.loaders.extlinux import Extlinux
from virtpass.host.loaders.grub import DEFAULTS, DROP_IN, SCRIPT, Grub, defaults_text, script_text
from virtpass.host.loaders.grub_cfg import parse_entries
from virtpass.host.loaders.limine import Limine
from virtpass.host.loaders.refind import Refind, parse_lines
from virtpass.host.special import refuse_special
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

ARGUMENTS = ("intel_iommu=on", "iommu=pt")
REQUEST = BootRequest(ARGUMENTS)
TRY = BootRequest(ARGUMENTS, is_trial=True)
BY_NAME = {row.name: row for row in ROWS}
PLANNED = [row for row in ROWS if row.loader and not row.refused]


def applied(host: Host, loader: Loader, request: BootRequest, programs: Programs) -> BootPlan:
    """Do by hand what a transaction would do."""
    plan = loader.plan(read_facts(host), request)
    for edit in plan.edits:
        base = host.read_bytes(edit.path)
        target = Path(host.path(edit.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(edit.form.for_base(base).add(base))
    for command in plan.commands:
        assert programs(host, command.argv, command.deadline).status == 0
    return plan


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_normal_entries_get_the_arguments_and_the_others_stay(row: Row, tmp_path: Path) -> None:
    host = build(tmp_path, row.files)
    loader = choose(read_facts(host), LOADERS)
    assert loader.name == row.loader
    before = loader.entries(read_facts(host))
    plan = applied(host, loader, REQUEST, Programs(row.programs))
    after = loader.entries(read_facts(host))
    for entry in after:
        if entry.role is Role.NORMAL:
            assert tokens.missing(ARGUMENTS, entry.tokens) == ()
        if entry.role is Role.FALLBACK:
            assert tokens.missing(ARGUMENTS, entry.tokens) == ARGUMENTS
            assert entry.tokens[-1] == OFF
            assert ROOT in entry.tokens
    has_fallback = any(entry.role is Role.FALLBACK for entry in after)
    assert has_fallback == bool(plan.fallback)
    assert has_fallback != any(note.reference == "no-fallback" for note in plan.notes)
    kept = {(entry.path, entry.identifier, entry.title): entry.tokens for entry in after}
    for entry in before:
        assert set(entry.tokens) <= set(kept[entry.path, entry.identifier, entry.title])
    # The first entry, which a numbered or no default takes, is still the distribution's own.
    assert after[0].title == before[0].title
    assert after[0].role is Role.NORMAL


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_a_request_without_arguments_plans_nothing(row: Row, tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, row.files))
    assert choose(facts, LOADERS).plan(facts, BootRequest(())) == BootPlan()


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_a_trial_leaves_the_normal_entries_alone_or_is_refused(row: Row, tmp_path: Path) -> None:
    host = build(tmp_path, row.files)
    loader = choose(read_facts(host), LOADERS)
    if loader.name != "grub":
        with pytest.raises(RefusedError) as caught:
            loader.plan(read_facts(host), TRY)
        assert caught.value.reference == "no-trial"
        return
    before = [entry for entry in loader.entries(read_facts(host)) if entry.role is Role.NORMAL]
    plan = applied(host, loader, TRY, Programs(row.programs))
    after = loader.entries(read_facts(host))
    assert [entry for entry in after if entry.role is Role.NORMAL] == before
    tried = next(entry for entry in after if entry.role is Role.TRIAL)
    assert tried.title == plan.tried
    assert tried.tokens[-3:] == (*ARGUMENTS, TRIAL)
    once = loader.one_shot(read_facts(host), tried)
    assert once is not None
    assert once.argv == ("grub-reboot", tried.identifier)
    assert once.outputs == ("/boot/grub/grubenv",)
    assert once.revert == ("grub-editenv", "/boot/grub/grubenv", "unset", "next_entry")


def refused(row: Row, tmp_path: Path) -> RefusedError:
    host = build(tmp_path, row.files)
    facts = read_facts(host)
    with pytest.raises(RefusedError) as caught:
        refuse_special(facts, ARGUMENTS)
        plan = choose(facts, LOADERS).plan(facts, REQUEST)
        for edit in plan.edits:
            os.close(host.open_directory(os.path.dirname(edit.path)))
            if os.path.islink(host.path(edit.path)):
                raise RefusedError("link-on-path", "as read_state says")
    return caught.value


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_refused_hosts_are_told_why(row: Row, tmp_path: Path) -> None:
    assert refused(row, tmp_path).reference == row.refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nixos", 'boot.kernelParams = [ "intel_iommu=on" "iommu=pt" ];'),
        ("guix", '(kernel-arguments (append \'("intel_iommu=on" "iommu=pt") %default-kernel-arguments))'),
        ("ubuntu-core", 'dangerous-cmdline-append="intel_iommu=on iommu=pt"'),
        ("aarch64", "intel_iommu=on iommu=pt"),
    ],
)
def test_the_text_to_paste_is_in_the_one_line(name: str, text: str, tmp_path: Path) -> None:
    line = refused(BY_NAME[name], tmp_path).line
    assert text in line
    assert "\n" not in line


def test_the_architecture_is_seen_from_the_files_of_another_root(tmp_path: Path) -> None:
    files = {**BY_NAME["debian-12-grub"].files, "/lib/ld-linux-aarch64.so.1": ""}
    assert refused(Row("", files), tmp_path).reference == "architecture"


# GRUB


def test_the_drop_in_adds_to_what_others_assign(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, BY_NAME["debian-cloud-grub"].files))
    plan = Grub().plan(facts, REQUEST)
    assert [(edit.path, type(edit.form), edit.mode) for edit in plan.edits] == [
        (DROP_IN, OwnFile, 0o644),
        (SCRIPT, OwnFile, 0o755),
    ]
    assert [command.argv for command in plan.commands] == [("update-grub",)]
    assert plan.commands[0].outputs == ("/boot/grub/grub.cfg", "/boot/grub/grub.cfg.new")
    assert plan.fallback == "Without passthrough: Debian Linux"


def test_without_drop_ins_a_block_goes_to_the_end(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, BY_NAME["arch-grub-mkinitcpio"].files))
    plan = Grub().plan(facts, REQUEST)
    assert [(edit.path, type(edit.form)) for edit in plan.edits] == [
        (DEFAULTS, MarkedBlock),
        (SCRIPT, OwnFile),
    ]
    assert [command.argv for command in plan.commands] == [("grub-mkconfig", "-o", "/boot/grub/grub.cfg")]


def test_a_drop_in_of_somebody_else_that_a_shell_cannot_parse_is_refused(tmp_path: Path) -> None:
    files = {**BY_NAME["debian-12-grub"].files, "/etc/default/grub.d/50-x.cfg": "if true\n"}
    error = refused(Row("", files), tmp_path)
    assert (error.reference, "50-x.cfg" in error.line) == ("grub-syntax", True)


def test_the_check_of_the_settings_runs_nothing_of_them(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    files = {**BY_NAME["debian-12-grub"].files, DEFAULTS: f"X=$(touch {mark})\ntouch {mark}\n"}
    facts = read_facts(build(tmp_path / "root", files))
    Grub().plan(facts, REQUEST)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "source", "is_possible"),
    [("ext4", "/dev/vda2", True), ("btrfs", "/dev/vda2", False), ("ext4", "/dev/mapper/vg-root", False)],
)
def test_a_trial_needs_an_environment_that_grub_can_write(
    kind: str, source: str, is_possible: bool, tmp_path: Path
) -> None:
    files = {**BY_NAME["debian-12-grub"].files, "/proc/self/mountinfo": rows_grub.mounts(("/", kind, source))}
    facts = read_facts(build(tmp_path, files))
    if is_possible:
        assert Grub().plan(facts, TRY).tried == "Trial of passthrough: Debian Linux"
    else:
        with pytest.raises(RefusedError, match="for ever"):
            Grub().plan(facts, TRY)


def test_where_the_script_cannot_repeat_entries_a_warning_says_so(tmp_path: Path) -> None:
    files = {
        **BY_NAME["debian-12-grub"].files,
        "/etc/grub.d/10_linux_zfs": "#!/bin/sh\n",
        "/proc/self/mountinfo": rows_grub.mounts(("/", "zfs", "rpool/ROOT")),
    }
    plan = Grub().plan(read_facts(build(tmp_path, files)), REQUEST)
    assert [note.reference for note in plan.notes] == ["no-fallback"]
    assert [edit.path for edit in plan.edits] == [DROP_IN]


LINE = st.sampled_from(
    [
        'GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"',
        "GRUB_CMDLINE_LINUX_DEFAULT='a=\"b c\" d'",
        'GRUB_CMDLINE_LINUX_DEFAULT="a \\\n  b"',
        'GRUB_CMDLINE_LINUX_DEFAULT="${GRUB_CMDLINE_LINUX_DEFAULT:+$GRUB_CMDLINE_LINUX_DEFAULT }x"',
        "export GRUB_CMDLINE_LINUX_DEFAULT=plain # a comment with 'quotes\"",
        "GRUB_CMDLINE_LINUX_DEFAULT=",
        'GRUB_CMDLINE_LINUX="root=\\"x\\""',
        "GRUB_DISTRIBUTOR=`echo Debian`",
        "# caf\udce9",
        "X='\udcff'",
        "",
    ]
)
SETTINGS = st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n"])), max_size=6).flatmap(
    lambda lines: st.sampled_from([lines, [*lines[:-1], (lines[-1][0], "")]] if lines else [lines])
)
SHOW = 'printf "%s\\0" "$GRUB_CMDLINE_LINUX_DEFAULT" "$GRUB_CMDLINE_LINUX" "$GRUB_VIRTPASS_BEFORE"'


def sourced(*contents: bytes) -> list[bytes]:
    """Return what a shell has after it has read files: the variable, another one, and the one before ours.

    Empty when the shell ends with an error, as dash does at an empty line with a carriage return.
    """
    reading = []
    for content in contents:
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        reading.append(read)
    arguments = [f"/dev/fd/{read}" for read in reading]
    script = b'set -e\nfor file in "$@"; do . "$file"; done\n' + SHOW.encode()
    try:
        done = subprocess.run(
            ["sh", "-c", script, "sh", *arguments],
            pass_fds=reading,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )
    finally:
        for read in reading:
            os.close(read)
    return done.stdout.split(b"\0")[:3] if done.returncode == 0 else []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SETTINGS, st.sampled_from([REQUEST, TRY]))
def test_a_shell_sees_exactly_our_tokens_added(lines: list[tuple[str, str]], request_: BootRequest) -> None:
    base = "".join(line + end for line, end in lines).encode("utf-8", "surrogateescape")
    text = defaults_text(request_)
    found = sourced(base)
    assume(found)
    before, other, _ = found
    block = MarkedBlock(text).for_base(base)
    ours = b"" if request_.is_trial else " ".join(ARGUMENTS).encode()
    wanted = before + b" " + ours if before and ours else before + ours
    for contents in ((block.add(base),), (base, text.encode()), (block.add(block.add(base)),)):
        assert sourced(*contents) == [wanted, other, before]
    assert block.remove(block.add(base)) == base


TITLES = st.text(st.characters(codec="utf-8", exclude_characters="'\n\r\0"), min_size=1, max_size=12)


@given(
    TITLES.filter(str.strip),
    TITLES.filter(str.strip),
    st.lists(st.sampled_from(["quiet", "a='b c'", "$vt_handoff", "x=\\;y", 'z="1 2"', "é"]), max_size=4),
    st.sampled_from(["\n", "\r\n"]),
)
def test_the_menu_is_read_as_grub_reads_it(menu: str, title: str, words: list[str], end: str) -> None:
    lines = [
        "if [ -s $prefix/grubenv ]; then",
        "  load_env",
        "fi",
        "function gfxmode {",
        '\tset gfxpayload="${1}"',
        "}",
        f"submenu '{menu}' $menuentry_id_option 'gnulinux-advanced-1' {{",
        f"\tmenuentry '{title}' --class gnu-linux $menuentry_id_option 'gnulinux-6.1-advanced-1' {{",
        "\t\tif [ x$grub_platform = xxen ]; then insmod xzio; fi",
        f"\t\tlinux\t/vmlinuz-6.1 {ROOT} ro  {' '.join(words)}",
        "\t}",
        "}",
        "menuentry 'Other (on /dev/sdb1)' $menuentry_id_option 'osprober-gnulinux-simple-2' {",
        "\tlinux /vmlinuz root=/dev/sdb1",
        "}",
        "menuentry 'Mine' {",
        "\tlinux /vmlinuz root=/dev/sdc1",
        "}",
    ]
    found = parse_entries(end.join(lines), "/grub.cfg")
    assert len(found) == 1
    escaped = [name.replace(">", ">>") for name in (menu, title)]
    assert (found[0].title, found[0].identifier) == (title, ">".join(escaped))
    given_words = {"a='b c'": "a=b c", "x=\\;y": "x=;y", 'z="1 2"': "z=1 2"}
    assert found[0].tokens == (ROOT, "ro", *(given_words.get(word, word) for word in words))


MKCONFIG = shutil.which("grub-mkconfig") or "/usr/sbin/grub-mkconfig"
PROBE = f"""#!/bin/sh
case "$*" in
*target=device*) echo /dev/vda2 ;;
*fs_uuid*) echo {rows_grub.UUID} ;;
*partuuid*) exit 1 ;;
*target=fs*|*"-t fs"*) echo ext2 ;;
*drive*) echo "(hd0,msdos2)" ;;
*partmap*) echo msdos ;;
esac
"""


def real_menu(tree: Path) -> str:
    """Run the real grub-mkconfig and its real scripts on the settings and kernels below a directory."""
    scripts = tree / "etc/grub.d"
    for name in ("00_header", "10_linux", "30_uefi-firmware", "41_custom"):
        if (source := Path("/etc/grub.d") / name).exists():
            text = source.read_text().replace("/boot/", f"{tree}/boot/").replace(" /vmlinu", " /none/vmlinu")
            (scripts / name).write_text(text)
    # Ours calls the distribution's script by its path.
    if (ours := tree / SCRIPT.lstrip("/")).exists():
        ours.write_text(ours.read_text().replace("/etc/grub.d/", f"{scripts}/"))
    for path in scripts.iterdir():
        path.chmod(0o755)
    probe = tree / "probe"
    probe.write_text(PROBE)
    probe.chmod(0o755)
    program = tree / "grub-mkconfig"
    text = Path(MKCONFIG).read_text().replace('sysconfdir="/etc"', f'sysconfdir="{tree}/etc"')
    program.write_text(text.replace('grub_probe="${sbindir}/grub-probe"', f'grub_probe="{probe}"'))
    environment = {"PATH": os.environ["PATH"], "EUID": "0", "grub_probe": os.fspath(probe), "LC_ALL": "C"}
    done = subprocess.run(
        ["sh", os.fspath(program), "-o", os.fspath(tree / "boot/grub/grub.cfg")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (tree / "boot/grub/grub.cfg").read_text()


REAL_SETTINGS = {
    "debian": 'GRUB_DEFAULT=0\nGRUB_DISTRIBUTOR=`echo Debian`\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
    "ubuntu-saved": "GRUB_DEFAULT=saved\nGRUB_SAVEDEFAULT=true\nGRUB_DISTRIBUTOR=Ubuntu\n",
    "flat": "GRUB_DISABLE_SUBMENU=y\nGRUB_DISABLE_RECOVERY=true\nGRUB_DISTRIBUTOR='Me & \"You\"'\n",
}


@pytest.mark.skipif(not os.path.exists(MKCONFIG), reason="grub-common is not installed")
@pytest.mark.parametrize(
    ("name", "request_"),
    [("debian", REQUEST), ("ubuntu-saved", REQUEST), ("flat", REQUEST), ("ubuntu-saved", TRY)],
    ids=["debian", "ubuntu-saved", "flat", "trial"],
)
def test_the_real_grub_mkconfig_makes_of_it_what_is_meant(
    name: str, request_: BootRequest, tmp_path: Path
) -> None:
    files: dict[str, str | bytes | Link | None] = {DEFAULTS: REAL_SETTINGS[name], "/etc/grub.d": None}
    for version in ("6.1.0-1-amd64", "6.12.0-1-amd64"):
        files |= {f"/boot/vmlinuz-{version}": "kernel", f"/boot/initrd.img-{version}": "initramfs"}
    host = build(tmp_path, {**files, "/boot/grub/grubenv": "# GRUB Environment Block\n".ljust(1024, "#")})
    before = parse_entries(real_menu(tmp_path), "")
    (tmp_path / "etc/default/grub.d").mkdir()
    Path(host.path(DROP_IN)).write_text(defaults_text(request_))
    Path(host.path(SCRIPT)).write_text(script_text(request_))
    text = real_menu(tmp_path)
    after = parse_entries(text, "")
    own = after[: len(before)]
    added = after[len(before) :]
    assert [(entry.identifier, entry.role) for entry in own] == [(one.identifier, one.role) for one in before]
    for entry, old in zip(own, before, strict=True):
        gets = ARGUMENTS if entry.role is Role.NORMAL and not request_.is_trial else ()
        assert entry.tokens == (*old.tokens, *gets)
    # The same entries again, without those for recovery.
    normal = [entry for entry in before if entry.role is Role.NORMAL]
    prefix, tail = (
        ("Trial of passthrough: ", (*ARGUMENTS, TRIAL))
        if request_.is_trial
        else ("Without passthrough: ", (OFF,))
    )
    assert [entry.tokens for entry in added] == [(*entry.tokens, *tail) for entry in normal]
    assert [entry.title for entry in added] == [prefix + entry.title for entry in normal]
    assert {entry.role for entry in added} == {Role.TRIAL if request_.is_trial else Role.FALLBACK}
    # None of them is remembered as the default, and none has the identifier of another.
    ours = text[text.index("99_virtpass ###") : text.rindex("99_virtpass ###")]
    assert "savedefault" not in ours
    assert "'gnulinux-" not in ours.replace("default", "")
    assert len({entry.identifier for entry in after}) == len(after)


@pytest.mark.skipif(not os.path.exists(MKCONFIG), reason="grub-common is not installed")
def test_a_script_that_is_left_behind_adds_nothing(tmp_path: Path) -> None:
    host = build(
        tmp_path, {DEFAULTS: "", SCRIPT: script_text(REQUEST), "/boot/vmlinuz-6.1": "", "/boot/grub": None}
    )
    assert {entry.role for entry in parse_entries(real_menu(Path(host.root)), "")} <= {
        Role.NORMAL,
        Role.RECOVERY,
    }


# extlinux


def test_alpine_gets_a_label_that_starts_the_same_kernel(tmp_path: Path) -> None:
    row = BY_NAME["alpine-extlinux"]
    host = build(tmp_path, row.files)
    applied(host, Extlinux(), REQUEST, Programs(row.programs))
    options = f"{ROOT} modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4"
    label = f"  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n  APPEND {options} virtpass=off\n"
    assert label in host.path("") + (host.read("/boot/extlinux.conf") or "") + "\n"
    # With other arguments the way back stays what it was.
    applied(host, Extlinux(), BootRequest(("other=1",), present=ARGUMENTS), Programs(row.programs))
    assert label in (host.read("/boot/extlinux.conf") or "") + "\n"


def test_a_menu_that_update_extlinux_leaves_alone_is_refused(tmp_path: Path) -> None:
    row = BY_NAME["alpine-extlinux"]
    text = str(row.files["/etc/update-extlinux.conf"]).replace("overwrite=1", "overwrite=0")
    files = {**row.files, "/etc/update-extlinux.conf": text}
    assert refused(Row("", files), tmp_path).reference == "extlinux-overwrite"


def test_labels_of_other_systems_are_left_alone(tmp_path: Path) -> None:
    row = BY_NAME["arch-syslinux-mkinitcpio"]
    host = build(tmp_path, row.files)
    applied(host, Extlinux(), REQUEST, Programs(row.programs))
    assert "APPEND root=/dev/sdb1 ro\n" in (host.read("/boot/syslinux/syslinux.cfg") or "")


# Limine


def test_a_drop_in_reaches_limine_unless_it_is_overruled(tmp_path: Path) -> None:
    paths = {
        "cachyos-limine": "/etc/limine-entry-tool.d/zz-virtpass.conf",
        "cachyos-limine-assigned": "/etc/default/limine",
    }
    for name, path in paths.items():
        facts = read_facts(build(tmp_path / name, BY_NAME[name].files))
        plan = Limine().plan(facts, REQUEST)
        assert [edit.path for edit in plan.edits] == [path]
        assert [command.argv for command in plan.commands] == [("limine-update",)]


def test_a_kernel_with_a_command_line_of_its_own_is_refused(tmp_path: Path) -> None:
    files = {
        **BY_NAME["cachyos-limine"].files,
        "/etc/limine-entry-tool.conf": 'KERNEL_CMDLINE["linux"]="x"\n',
    }
    assert refused(Row("", files), tmp_path).reference == "limine-per-kernel"


def test_snapshots_are_no_entries_of_this_system(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, BY_NAME["cachyos-limine"].files))
    assert [entry.title for entry in Limine().entries(facts)] == ["linux-cachyos"]


# rEFInd


def test_only_the_first_line_is_changed(tmp_path: Path) -> None:
    row = BY_NAME["arch-refind"]
    host = build(tmp_path, row.files)
    before = str(row.files["/boot/refind_linux.conf"]).splitlines()
    applied(host, Refind(), REQUEST, Programs(row.programs))
    after = (host.read("/boot/refind_linux.conf") or "").splitlines()
    assert after[0] == f'"Boot with standard options"  "{ROOT} ro quiet splash  intel_iommu=on iommu=pt"'
    assert after[1:3] == before[1:3]
    assert after[4] == f'"Without passthrough" "{ROOT} ro quiet splash  virtpass=off"'


@given(st.text(st.sampled_from('"# \tab=\r'), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_lines_that_are_none_are_passed_over(noise: str, end: str) -> None:
    good = f'"Title" "{ROOT} ro"'
    found = parse_lines(f"# {noise}{end}{good}{end}", "/x")
    assert [(entry.title, entry.tokens) for entry in found] == [("Title", (ROOT, "ro"))]


def test_entries_in_its_own_configuration_are_mentioned(tmp_path: Path) -> None:
    stanza = 'menuentry "Arch" {\n    loader /vmlinuz-linux\n    options "root=x"\n}\n'
    files = {**BY_NAME["arch-refind"].files, "/efi/EFI/refind/refind.conf": stanza}
    plan = Refind().plan(read_facts(build(tmp_path, files)), REQUEST)
    assert [note.reference for note in plan.notes] == ["refind-entries"]
