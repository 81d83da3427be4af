"""What is in no file of a host, on its way into a snapshot and out of it."""

import types
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from virtpass.doctor.scene import Outside
from virtpass.host.status import Check, Verdict
from virtpass.system.recorded import RecordedHost, malformed, texts, typed

# Seconds since the epoch; no clock says more.
_LATEST = 1 << 40


def outside_to_json(outside: Outside) -> dict[str, Any]:
    """Render what is in no file."""
    return {one.name: _rendered(getattr(outside, one.name)) for one in fields(outside)}


def recorded_outside(host: RecordedHost) -> Outside:
    """Return what was in no file when a snapshot was taken; what an earlier version did not know is empty.

    Raises:
        UsageError: it is not understood.
    """
    kinds = get_type_hints(Outside)
    return Outside(
        **{name: _parsed(kinds[name], host.outside[name]) for name in kinds if name in host.outside}
    )


def _rendered(value: Any) -> Any:  # noqa: ANN401 (whatever a field holds)
    if isinstance(value, Check):
        return [value.reference, value.verdict.value, value.text]
    return [_rendered(one) for one in value] if isinstance(value, tuple) else value


def _parsed(kind: Any, data: object) -> Any:  # noqa: ANN401 (whatever a field holds)
    if kind is Check:
        return _check(data)
    if kind is float:
        if not isinstance(data, int | float) or abs(data) > _LATEST:
            raise malformed()
        return float(data)
    if get_origin(kind) is types.UnionType:
        (inner,) = [one for one in get_args(kind) if one is not types.NoneType]
        return None if data is None else _parsed(inner, data)
    if get_origin(kind) is not tuple:
        return typed(data, kind)
    inner, *others = get_args(kind)
    found = typed(data, list)
    if others == [...]:
        return tuple(_parsed(inner, one) for one in found)
    if len(found) != len(others) + 1:
        raise malformed()
    return tuple(_parsed(one, value) for one, value in zip((inner, *others), found, strict=True))


def _check(data: object) -> Check:
    found = texts(data)
    if len(found) != 3 or found[1] not in [one.value for one in Verdict]:
        raise malformed()
    return Check(found[0], Verdict(found[1]), found[2])
