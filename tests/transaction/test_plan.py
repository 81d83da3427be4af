"""What a change looks like to whoever has to agree to it."""

from virtpass.system.files import FileState
from virtpass.transaction.plan import Command, FileChange, Plan

OLD = FileState(b"one\ntwo\n")


def diff(before: FileState | None, after: FileState | None) -> str:
    return FileChange("/etc/file", before, after, "because").diff


def test_a_change_is_a_unified_diff() -> None:
    assert diff(OLD, OLD.with_content(b"one\n2\n")) == (
        "--- /etc/file\n+++ /etc/file\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
    )


def test_a_new_file_comes_from_nothing_and_tells_that_it_can_be_run() -> None:
    assert (
        diff(None, FileState(b"#!\n", 0o755))
        == "# /etc/file: permissions 0755\n--- /dev/null\n+++ /etc/file\n@@ -0,0 +1 @@\n+#!\n"
    )


def test_a_removed_file_goes_to_nothing() -> None:
    assert diff(OLD, None) == "--- /etc/file\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-one\n-two\n"


def test_an_empty_file_that_comes_or_goes_is_shown() -> None:
    assert diff(None, FileState(b"")) == "--- /dev/null\n+++ /etc/file\n"
    assert diff(FileState(b""), None) == "--- /etc/file\n+++ /dev/null\n"


def test_a_missing_line_break_at_the_end_is_shown() -> None:
    assert diff(FileState(b"a"), FileState(b"a\nb")) == (
        "--- /etc/file\n+++ /etc/file\n@@ -1 +1,2 @@\n-a\n\\ No newline at end of file\n"
        "+a\n+b\n\\ No newline at end of file\n"
    )


def test_permissions_alone_are_a_change() -> None:
    assert diff(OLD, FileState(OLD.content, 0o755)) == "# /etc/file: permissions 0644 -> 0755\n"


def test_bytes_that_are_no_text_are_escaped_and_only_line_feeds_end_lines() -> None:
    shown = diff(FileState(b"a\x0cb\r\n"), FileState(b"a\x0cb\r\n\xff\xe2\x80\xa8x\n"))
    assert shown.endswith("@@ -1 +1,2 @@\n a\x0cb\r\n+\\xff\u2028x\n")


def test_nothing_to_do_is_empty() -> None:
    assert diff(OLD, OLD) == ""
    assert not FileChange("/f", None, None, "").is_needed
    assert not FileChange("/f", OLD, FileState(OLD.content, owner=(5, 5), mtime_ns=7), "").is_needed
    assert FileChange("/f", FileState(b"", owner=(0, 0)), FileState(b"", owner=(5, 5)), "").is_needed
    assert Plan().is_empty
    assert not Plan(commands=(Command(("true",), "because"),)).is_empty


def test_two_plans_become_one_with_each_command_once() -> None:
    refresh, other = Command(("refresh",), "a"), Command(("other",), "b")
    first = Plan((FileChange("/a", None, OLD, ""),), ("/d",), ("/o",), (refresh,))
    both = first.then(Plan((FileChange("/b", None, OLD, ""),), ("/d", "/d/e"), ("/o",), (refresh, other)))
    assert [change.path for change in both.changes] == ["/a", "/b"]
    assert both.directories == ("/d", "/d/e")
    assert both.obsolete == ("/o",)
    assert both.commands == (refresh, other)


def test_undoing_runs_what_takes_back_and_then_the_other_way_round() -> None:
    command = Command(("set",), "sets", "little", 5.0, ("/a/*",), ("unset",))
    assert command.undoing.argv == ("unset",)
    assert command.undoing.undoing == command
    assert Command(("refresh",), "a").undoing.argv == ("refresh",)
