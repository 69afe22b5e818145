"""The rules. A module of this package may define any number of them; they are found by themselves."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from swtrace.diagnosis.rule import HostRule, Rule


@cache
def rules() -> tuple[Rule, ...]:
    """Return all rules about series, in the order of what they are about."""
    _load()
    return tuple(sorted((one() for one in Rule.__subclasses__()), key=lambda rule: (rule.about, type(rule).__module__)))


@cache
def host_rules() -> tuple[HostRule, ...]:
    """Return all rules about ranks and rings."""
    _load()
    return tuple(sorted((one() for one in HostRule.__subclasses__()), key=lambda rule: type(rule).__module__))


def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
