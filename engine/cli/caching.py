"""--cache NAME or NAME:FIELD=VALUE,…: the configurations of `kinema.caches` on the command line."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from kinema.cli.parser import text
from kinema.errors import RequestError, shown

if TYPE_CHECKING:
    from kinema.request.caching import CacheConfig

NAMES = ("hold", "rate", "mag", "easy", "guidance-end")


def add_cache_argument(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cache",
        type=text,
        action="append",
        metavar="NAME[:FIELD=VALUE,...]",
        help=f"leave out parts of steps: {', '.join(NAMES)} (docs/caches.md); once more for one of each kind",
    )


def cache_from(given: list[str] | None) -> list[CacheConfig] | None:
    """RequestError for what is no cache."""
    return None if given is None else [_config(one) for one in given]


def _config(given: str) -> CacheConfig:
    from kinema.request import caching

    kinds = {
        "hold": caching.HoldCacheConfig,
        "rate": caching.RateCacheConfig,
        "mag": caching.MagCacheConfig,
        "easy": caching.EasyCacheConfig,
        "guidance-end": caching.GuidanceEndConfig,
    }
    name, _, rest = given.partition(":")
    if name not in kinds:
        raise RequestError(f"--cache {shown(given)}: wanted one of {', '.join(NAMES)}")
    known = [field.name for field in fields(kinds[name])]
    values: dict[str, Any] = {}
    for assignment in rest.split(",") if rest else ():
        field, equals, value = assignment.partition("=")
        if not equals or field not in known:
            raise RequestError(f"--cache {shown(given)}: wanted {name}:FIELD=VALUE,... with {', '.join(known)}")
        values[field] = _value(given, value)
    for field in ("sigmas", "mag_ratios"):  # a/b/c
        if field in values and not isinstance(values[field], tuple):
            values[field] = (values[field],)
    if name == "mag" and "mag_ratios" not in values:
        raise RequestError("--cache mag: wanted mag:mag_ratios=A/B/C/... of this checkpoint")
    made: CacheConfig = kinds[name](**values)
    return made


def _value(given: str, value: str) -> Any:
    try:
        if "/" in value:
            return tuple(float(one) for one in value.split("/"))
        return int(value) if value.lstrip("-").isdecimal() else float(value)
    except ValueError:
        raise RequestError(f"--cache {shown(given)}: {shown(value)} is not a number") from None
