"""GRUB: plans, what comes of them with the real grub-mkconfig, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.host import rows_grub
from tests.host.grub_trees import ARGUMENTS, BY_NAME, REQUEST, TRY, refused
from tests.host.rows import Link, Row, build
from tests.host.rows_grub import ROOT
from virtpass.host.boot import OFF, TRIAL, BootRequest, Role
from virtpass.host.facts import read_facts
from virtpass.host.forms import MarkedBlock, OwnFile
from virtpass.host.loaders.grub import SCRIPT, Grub, defaults_text, script_text
from virtpass.host.loaders.grub_cfg import parse_entries
from virtpass.host.loaders.grub_defaults import DEFAULTS, DROP_IN
from virtpass.system.errors import RefusedError


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


@pytest.mark.parametrize(
    ("defaults", "drop_in", "seen"),
    [
        ("GRUB_TIMEOUT=5\n", "", ""),
        ("GRUB_TIMEOUT=0\n", "", "GRUB_TIMEOUT=0"),
        ("GRUB_TIMEOUT='0'\n", "GRUB_TIMEOUT=2\n", ""),
        ("GRUB_TIMEOUT=5\n#GRUB_TIMEOUT=0\n", "export GRUB_TIMEOUT=0 # quick\n", "GRUB_TIMEOUT=0"),
        ('GRUB_TIMEOUT_STYLE="hidden"\nGRUB_TIMEOUT=3\n', "", "GRUB_TIMEOUT_STYLE=hidden"),
        ("GRUB_TIMEOUT_STYLE=hidden\n", "GRUB_TIMEOUT_STYLE=menu\n", ""),
    ],
)
def test_a_hidden_menu_is_told_with_the_way_to_the_fallback(
    defaults: str, drop_in: str, seen: str, tmp_path: Path
) -> None:
    files = {**BY_NAME["debian-12-grub"].files, DEFAULTS: defaults, "/etc/default/grub.d/50-x.cfg": drop_in}
    facts = read_facts(build(tmp_path, files))
    notes = [note.text for note in Grub().plan(facts, REQUEST).notes if note.reference == "hidden-menu"]
    assert [seen in text and "hold Shift" in text for text in notes] == ([True] if seen else [])
    without = BootRequest(ARGUMENTS, with_fallback=False)
    assert Grub().plan(facts, without).notes == ()


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
    assert (found[0].title, found[0].identifier) == (title, "gnulinux-advanced-1>gnulinux-6.1-advanced-1")
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


# What else a host has that can try arguments.
READY: dict[str, str | bytes | Link | None] = {
    "/proc/self/mountinfo": rows_grub.mounts(("/", "ext4", "/dev/vda2")),
    "/usr/sbin/grub-mkconfig": "#!/bin/sh\n. ${sysconfdir}/default/grub.d/x\n",
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
    if request_.is_trial:
        menu = {"/boot/grub/grub.cfg": text.replace(os.fspath(tmp_path), "")}
        plan = Grub().plan(read_facts(build(tmp_path, READY | menu)), request_)
        assert plan.choice is not None
        assert plan.choice.identifier == added[0].identifier
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
