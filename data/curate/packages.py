"""Packages of the extra `[web]`, imported when a step that needs them is called."""

import importlib
from typing import Any

from core.errors import UserError


def package(name: str) -> Any:
    """The module, or one line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"this recipe needs the package {error.name}; install it with `pip install -e .[web]`"
        ) from None
