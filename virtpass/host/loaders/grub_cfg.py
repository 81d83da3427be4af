"""The grub.cfg that GRUB reads at boot: which entries it has, and what each gives to its kernel."""

import re
from dataclasses import replace
from itertools import pairwise

from virtpass.host.boot import BootEntry, Role
from virtpass.host.loaders.marks import own_role

# GRUB's words: single quotes, double quotes with backslash escapes, and everything else up to a blank.
_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""")
_LINUX = ("linux", "linux16", "linuxefi")
_INITRD = ("initrd", "initrd16", "initrdefi")
# What 10_linux and its relatives (10_linux_zfs, Arch's, Manjaro's) name their entries, and what our script
# names its own. Entries of other scripts do not read GRUB_CMDLINE_LINUX_DEFAULT: os-prober's, memory tests,
# Xen's, what the administrator wrote into 40_custom.
OURS = "virtpass-"
# What stands between the identifiers of a submenu and of an entry in it; in one of them it is doubled.
SUBMENU = ">"
_IDS = ("gnulinux-", OURS)
# What grub-mkconfig writes before what each script says.
GENERATED = b"### BEGIN /etc/grub.d/"


def parse_entries(text: str, path: str) -> list[BootEntry]:
    """Return the entries that start this host's Linux, in the order of the menu.

    The identifier of an entry is its id with those of its submenus before it, as grub-reboot takes it: other
    than a title an id stays the same whatever language grub-mkconfig speaks.

    Args:
        text: a grub.cfg as grub-mkconfig writes it.
        path: where it stands.
    """
    found: list[BootEntry] = []
    # The identifiers of the submenus around a line; None for an entry or another block in braces.
    open_blocks: list[str | None] = []
    title = identifier = ""
    is_found = False
    # GRUB skips carriage returns when it reads a file.
    for line in text.replace("\r", "").split("\n"):
        words = _words(line)
        if not words:
            continue
        if words[0] in ("menuentry", "submenu") and len(words) > 1 and words[-1] == "{":
            if words[0] == "submenu":
                open_blocks.append(_identifier(words) or words[1])
            else:
                open_blocks.append(None)
                title, identifier, is_found = words[1], _identifier(words), False
        elif words[-1] == "{":
            open_blocks.append(None)
        elif words[0] == "}":
            if open_blocks:
                open_blocks.pop()
        elif words[0] in _LINUX and len(words) > 1 and identifier.startswith(_IDS) and title:
            menus = [menu for menu in open_blocks if menu is not None]
            place = SUBMENU.join(name.replace(SUBMENU, SUBMENU * 2) for name in (*menus, identifier))
            # A word with blanks stood in quotes; the kernel gets it as GRUB passes it on.
            arguments = tuple(word for word in words[2:] if word)
            found.append(BootEntry(title, place, path, arguments, role(arguments, identifier), ()))
            title, is_found = "", True
        elif words[0] in _INITRD and is_found:
            found[-1] = replace(found[-1], initrds=tuple(word for word in words[1:] if word))
    return found


def _words(line: str) -> list[str]:
    words: list[str] = []
    for found in _WORD.finditer(line.strip()):
        word = found.group()
        if word.startswith("#"):
            break
        words.append(_unquoted(word))
    return words


def _unquoted(word: str) -> str:
    return re.sub(
        r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""",
        lambda found: (
            found[1]
            if found[1] is not None
            else found[3]
            if found[3]
            else re.sub(r"\\(.)", r"\1", found[2] or "")
        ),
        word,
    )


def _identifier(words: list[str]) -> str:
    for marker, value in pairwise(words):
        if marker in ("--id", "$menuentry_id_option"):
            return value
    return ""


def role(found: tuple[str, ...], identifier: str = "") -> Role:
    """Tell what an entry with these arguments is for."""
    if (ours := own_role(found)) is not None:
        return ours
    # "fallback" is the type that Arch gives to the entry of the initramfs with all drivers in it.
    is_recovery = any(kind in identifier for kind in ("-recovery-", "-fallback-")) or any(
        word in found for word in ("single", "recovery")
    )
    return Role.RECOVERY if is_recovery else Role.NORMAL
