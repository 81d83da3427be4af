"""How virtpass's part of a file looks, and how it is put in and taken out again. Pure functions over bytes.

For each form: ``remove(add(base)) == base`` when ``for_base(base)`` made it, ``add`` changes nothing
when it is repeated, and what others write around our part stays.
"""

from dataclasses import asdict
from typing import Any

from virtpass.host.forms.base import Form
from virtpass.host.forms.blocks import MarkedBlock, OwnFile
from virtpass.host.forms.comma_lists import CommaList
from virtpass.host.forms.json_lists import JsonTokens
from virtpass.host.forms.lines import EntryOptions, LineTokens, entry_options
from virtpass.host.forms.menus import MenuLines
from virtpass.host.forms.variables import EnvironmentTokens, VariableTokens

__all__ = [
    "CommaList",
    "EntryOptions",
    "EnvironmentTokens",
    "Form",
    "JsonTokens",
    "LineTokens",
    "MarkedBlock",
    "MenuLines",
    "OwnFile",
    "VariableTokens",
    "entry_options",
    "form_from_json",
    "form_to_json",
]

_FORMS: dict[str, Any] = {
    form.kind: form
    for form in (
        OwnFile,
        MarkedBlock,
        LineTokens,
        EntryOptions,
        VariableTokens,
        EnvironmentTokens,
        MenuLines,
        JsonTokens,
        CommaList,
    )
}


def form_to_json(form: Form) -> dict[str, Any]:
    """Render a form."""
    return {"kind": form.kind, **asdict(form)}  # type: ignore[call-overload]


def form_from_json(data: Any) -> Form:  # noqa: ANN401 (whatever JSON holds)
    """Parse a form. Raises ValueError, KeyError or TypeError for anything else."""
    values = {name: tuple(one) if isinstance(one, list) else one for name, one in data.items()}
    form: Form = _FORMS[str(values.pop("kind"))](**values)
    for value in values.values():
        if not all(isinstance(one, str) for one in (value if isinstance(value, tuple) else (value,))):
            raise TypeError(value)
    return form
