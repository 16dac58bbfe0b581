"""The default input: the documentation and source of the Python installation that runs this.

Real text with a licence, on every machine, with no download: the `pydoc` topics (the language reference),
the source of the standard library with its docstrings, and, for modules written in C, their docstrings.
A module with source gives one document, not two: its docstrings stand in the source already, and a second
copy could fall on the other side of the held-out split.
"""

import functools
import importlib
import os
import platform
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.files import fingerprint
from data.document import Document, Dropped

SOURCE_NAMES = {"topics": "python-topics", "builtins": "python-docstrings", "source": "python-source"}
LICENSE = "PSF-2.0"
MODULES_PER_PARTITION = 64
# Topics live in this module as one literal; it would repeat every topic document.
SKIPPED_MODULES = {"pydoc_data.topics"}
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# Importing these opens a browser, prints a poem or changes the interpreter.
NOT_IMPORTED = {"antigravity", "this", "idlelib.idle", "__main__"}


def partitions(_: Path) -> list[str]:
    """Names of the pieces that workers read on their own."""
    count = len(modules())
    pieces = [f"source:{start}" for start in range(0, count, MODULES_PER_PARTITION)]
    return ["topics", "builtins", *pieces]


def inputs(_: Path) -> dict:
    """What the documents depend on: the interpreter, the name and size of every source file."""
    sizes = [(name, path.stat().st_size) for name, path in modules()]
    return {"python": platform.python_version(), "modules": len(sizes), "fingerprint": fingerprint(sizes)}


def read(_: Path, partition: str) -> Iterator[Document | Dropped]:
    """The documents of one partition."""
    if partition == "topics":
        return _topics()
    if partition == "builtins":
        return _builtins()
    start = int(partition.removeprefix("source:"))
    return _sources(modules()[start : start + MODULES_PER_PARTITION])


def _document(kind: str, module: str, text: str, language: str) -> Document:
    return Document(
        id=f"python/{kind}/{module}",
        text=text,
        source=SOURCE_NAMES[kind],
        url=f"python:{module}",
        language=language,
        license=LICENSE,
        meta={"python": platform.python_version()},
    )


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package the topics apart
        return
    for name, text in sorted(topics.items()):
        yield _document("topics", name, text, "en")


def _builtins() -> Iterator[Document | Dropped]:
    """Docstrings of modules without Python source, as `help(module)` would gather them."""
    with_source = {name for name, _ in modules()}
    for name in sorted(set(sys.stdlib_module_names) - with_source - NOT_IMPORTED):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except ImportError:  # for another platform, or its library is not installed
            continue
        yield _document("builtins", name, docstrings(module), "en")


def docstrings(module: types.ModuleType) -> str:
    """A module's own docstring and those of its public classes, methods and functions, each once."""
    members = {module.__name__: module}
    for name, member in sorted(vars(module).items()):
        if not name.startswith("_") and callable(member):
            members[f"{module.__name__}.{name}"] = member
            if isinstance(member, type):
                methods = sorted(item for item in vars(member).items() if not item[0].startswith("_"))
                members.update((f"{module.__name__}.{name}.{method}", function) for method, function in methods)
    names: dict[str, str] = {}  # by docstring: aliases share one
    for name, member in members.items():
        if isinstance(doc := getattr(member, "__doc__", None), str) and doc.strip():
            names.setdefault(doc.strip(), name)
    return "\n\n".join(f"{name}\n{doc}" for doc, name in names.items()) + "\n"


def _sources(modules: Iterable[tuple[str, Path]]) -> Iterator[Document | Dropped]:
    for name, path in modules:
        payload = path.read_bytes()
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError:
            yield Dropped(f"python/source/{name}", SOURCE_NAMES["source"], "undecodable", len(payload))
            continue
        yield _document("source", name, text, "")


@functools.cache  # every partition asks, and the walk takes long on a network disk
def modules() -> tuple[tuple[str, Path], ...]:
    """Dotted name and path of every standard-library module with source, without its test suites."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, below, names in os.walk(root):
        below[:] = set(below) - SKIPPED_FOLDERS
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if name not in SKIPPED_MODULES:
                found.append((name, path))
    return tuple(sorted(found))
