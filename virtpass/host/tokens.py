"""Kernel arguments as tokens: how a command line is split, and which tokens virtpass writes."""

import re

from virtpass.system.errors import UsageError

# Needs no quoting in a shell, in grub.cfg, in a loader entry, in JSON or in a unified kernel image. The list
# separator of kernel arguments, the comma, is in it; blanks and quotes are not.
_SAFE = re.compile(r"[A-Za-z0-9_.,:=@/+\-]+")
_MAX_TOKEN = 512
# What a bootloader adds by itself, and what must not be copied from a running system into a file.
_LOADER_MADE = ("BOOT_IMAGE", "initrd")
_BLANKS = " \t\n\v\f\r"
# How what the kernel takes for true begins, and for false.
_TRUE, _FALSE = ("1", "y", "t", "e", "on"), ("0", "n", "f", "d", "of")
# What follows it is for init, not for the kernel.
_END = "--"


def parse_argument(text: str) -> str:
    """Return a kernel argument as it was typed.

    Raises:
        UsageError: it is empty, too long, or has characters that some bootloader would take for its own.
    """
    if not _SAFE.fullmatch(text) or len(text) > _MAX_TOKEN or text[0] in "=,-":
        raise UsageError(
            "kernel-argument",
            f"'{text}' cannot be written as a kernel argument safely",
            "letters, digits and _ . , : = @ / + - are allowed, one argument at a time",
        )
    return text


def split(line: str) -> tuple[str, ...]:
    """Split a command line into tokens as the kernel does: at blanks outside double quotes.

    The quotes stay in the tokens (next_arg in the kernel's lib/cmdline.c).
    """
    tokens: list[str] = []
    token = ""
    is_quoted = False
    for character in line:
        if character == '"':
            is_quoted = not is_quoted
        if character in _BLANKS and not is_quoted:
            if token:
                tokens.append(token)
            token = ""
        else:
            token += character
    return (*tokens, token) if token else tuple(tokens)


def key(token: str) -> str:
    """Return the part of a token before the first ``=``, with dashes as underscores, as modules see it.

    A quote before it, which the kernel takes off, is no part of the name.
    """
    return token.removeprefix('"').partition("=")[0].replace("-", "_")


def same(first: str, second: str) -> bool:
    """Tell whether two tokens mean the same: dashes and underscores in the name are one to the kernel."""
    return key(first) == key(second) and first.partition("=")[1:] == second.partition("=")[1:]


def truth(token: str) -> bool | None:
    """Return what a parameter that is true or false says; None when the kernel takes it for neither.

    Without a value it is true (kstrtobool, and param_set_bool in kernel/params.c).
    """
    _, has_value, value = token.partition("=")
    if not has_value or value.lower().startswith(_TRUE):
        return True
    return False if value.lower().startswith(_FALSE) else None


def missing(wanted: tuple[str, ...], present: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the wanted tokens that are not present, or stand where the kernel does not look."""
    if _END in present:
        present = present[: present.index(_END)]
    return tuple(token for token in wanted if not any(same(token, other) for other in present))


def without(tokens: tuple[str, ...], removed: tuple[str, ...]) -> tuple[str, ...]:
    """Return tokens without the last of each that means the same as a removed one; others are ignored."""
    left = list(tokens)
    for token in removed:
        for position in reversed(range(len(left))):
            if same(left[position], token):
                del left[position]
                break
    return tuple(left)


def lasting(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Return a running command line without what the bootloader made."""
    return tuple(token for token in tokens if key(token) not in _LOADER_MADE)
