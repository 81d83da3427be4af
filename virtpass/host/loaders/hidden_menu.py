"""Boot menus that are not shown: how their other entries are reached. Nothing of it is ever changed."""

from collections.abc import Mapping

from virtpass.host.boot import Note, Severity
from virtpass.host.facts import HostFacts
from virtpass.host.loaders.loader_conf import setting

# What systemd-boot takes for no time at all; without a setting it is none either.
_NO_TIME = ("", "0", "menu-hidden")
_NEVER = "menu-disabled"


def of_grub(settings: Mapping[str, str], environment: Mapping[str, str]) -> tuple[Note, ...]:
    """Say how to reach the menu of GRUB where it is hidden.

    Args:
        settings: what /etc/default/grub and its drop-ins assign.
        environment: the variables in GRUB's environment block.
    """
    seen = ""
    if settings.get("GRUB_TIMEOUT") == "0":
        seen = "GRUB_TIMEOUT=0"
    elif settings.get("GRUB_TIMEOUT_STYLE") == "hidden":
        seen = "GRUB_TIMEOUT_STYLE=hidden"
    elif environment.get("menu_auto_hide", "0") != "0":
        # Fedora's, after a boot that went well.
        seen = f"menu_auto_hide={environment['menu_auto_hide']} in its environment"
    return (_note(f"the menu of GRUB is hidden ({seen})", "press Esc, or hold Shift,"),) if seen else ()


def of_systemd_boot(facts: HostFacts) -> tuple[Note, ...]:
    """Say how to reach the menu of systemd-boot where it is hidden."""
    timeout = setting(facts, "timeout", "LoaderConfigTimeout")
    if timeout == _NEVER:
        text = (
            f"the menu of systemd-boot is never shown (timeout {_NEVER}), so nothing but bootctl set-oneshot "
            "leads to the fallback entry"
        )
        return (Note("hidden-menu", text, Severity.WARNING),)
    if timeout in _NO_TIME:
        seen = f"timeout {timeout}" if timeout else "no timeout is set"
        return (_note(f"the menu of systemd-boot is hidden ({seen})", "hold the space bar"),)
    return ()


def _note(what: str, how: str) -> Note:
    return Note("hidden-menu", f"{what}; for the fallback entry {how} while the computer starts")
