"""Packages of extras, `[web]` above all, imported when a step or a source that needs them is called."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.errors import UserError


def package(name: str, extra: str = "web") -> Any:
    """The module, or one line that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), extra) from None


def folder_of(name: str) -> Path:
    """Where a package lies; it is not imported, which may take a second."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise _missing(name)
    return Path(found.origin).parent


def versions(users: Iterable[Any]) -> dict[str, dict[str, str]]:
    """Versions of the `packages` that steps or sources name, of those installed; nothing where there are none."""
    names = sorted({name for user in users for name in getattr(user, "packages", ())})
    found = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
    return {"packages": found} if found else {}


def _missing(name: str, extra: str = "web") -> UserError:
    return UserError(f"this input or recipe needs the package {name}; install it with `pip install -e .[{extra}]`")
