"""The presets of mkinitcpio: which kernel, which images, and with which options each of them is built.

A preset is a piece of shell that is sourced, such as ``ALL_kver="/boot/vmlinuz-linux"`` and
``PRESETS=('default')``. Plain assignments are read, and nothing is run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from virtpass.host.facts import HostFacts

DIRECTORY = "/etc/mkinitcpio.d"
_ENDING = ".preset"
_ASSIGNMENT = re.compile(r"^[ \t]*([A-Za-z_]\w*)=(?:(\([^)]*\))|\"([^\"]*)\"|'([^']*)'|(\S*))", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset.

    Attributes:
        path: its file.
        values: what it assigns; an array keeps its brackets.
    """

    path: str
    values: Mapping[str, str]

    @property
    def package(self) -> str:
        """The name of the kernel's package."""
        return self.path.rpartition("/")[2].removesuffix(_ENDING)

    @property
    def variants(self) -> list[str]:
        """What is built, such as "default" and "fallback"."""
        return [word.strip("'\"") for word in self.values.get("PRESETS", "").strip("()").split()]

    def value(self, variant: str, kind: str) -> str:
        """Return a variant's own value, or that of all; empty when there is neither."""
        return self.values.get(f"{variant}_{kind}") or self.values.get(f"ALL_{kind}", "")

    def uki(self, variant: str) -> str:
        """Return the unified kernel image of a variant; empty when it has none."""
        return self.values.get(f"{variant}_uki") or self.values.get(f"{variant}_efi_image", "")


def read_presets(facts: HostFacts) -> list[Preset]:
    """Return the presets by the names of their files."""
    return [
        Preset(path, _values(facts.text(path)))
        for name in facts.host.names(DIRECTORY)
        if name.endswith(_ENDING)
        for path in (f"{DIRECTORY}/{name}",)
    ]


def _values(text: str) -> dict[str, str]:
    return {
        found[1]: next((value for value in found.groups()[1:] if value is not None), "")
        for found in _ASSIGNMENT.finditer(text)
    }
