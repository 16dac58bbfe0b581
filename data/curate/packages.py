"""Packages of the extra `[web]`, imported when a step that needs them is called."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from core.errors import UserError


def package(name: str) -> Any:
    """The module, or one line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name)) from None


def folder_of(name: str) -> Path:
    """Where a package lies; it is not imported, which may take a second."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise _missing(name)
    return Path(found.origin).parent


def _missing(name: str) -> UserError:
    return UserError(f"this recipe needs the package {name}; install it with `pip install -e .[web]`")
