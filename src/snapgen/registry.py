"""Registries: dictionaries from a name to "module:attribute", which is imported only when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_attribute(place: str) -> Any:
    """The class or function at `place`, "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
