"""The field's methods, one a file: found by name, trained alike.

A file of this package with a subclass of `Method` adds a method; nothing else has to know of it.
"""

import difflib
import importlib
import pkgutil

from ..errors import UserError
from .method import Method, Number, ParameterGroup, PlanName, Setup

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

METHODS = Method.registered


def find_method(name: str, key: str = "method") -> type[Method]:
    """The method of that name; UserError, about the configuration key `key`, with the nearest name if there is none."""
    if name not in METHODS:
        nearest = difflib.get_close_matches(name.lower(), METHODS, n=1, cutoff=0)[0]
        raise UserError(f"{key}={name} is unknown; did you mean {nearest}? There are {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Number", "ParameterGroup", "PlanName", "Setup", "find_method"]
