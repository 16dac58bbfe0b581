"""Conversations about the standard library of the Python that runs this, made by rule from its docstrings.

A demonstration corpus: real answers (the docstring of each public function, class and method) to questions of one
form. Source is parsed, not imported. In every second conversation the assistant thinks first, about what it can know
from the name and the signature, and the others have /no_think in the system message: the two modes of our template.
"""

import ast
import inspect
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.conversations import from_record
from data.document import Document, Dropped, id_hash
from data.sources.python_installation import LICENSE, MODULES_PER_PARTITION, inputs, modules

__all__ = ["inputs", "partitions", "read"]

NAME = "python-chat"  # of the source; `python:chat` as its path asks for it
MIN_ANSWER, MAX_ANSWER = 20, 600  # characters; longer docstrings give their first paragraph
QUESTIONS = ("What does `{}` do?", "Tell me about `{}`.", "Explain `{}`, please.", "What is `{}` for?")


class Member(NamedTuple):
    """A function, class or method with a docstring."""

    name: str  # dotted, below its module
    kind: str
    signature: str  # of a class, its bases
    answer: str


def partitions(_: Path) -> list[str]:
    """Names of the pieces that workers read on their own."""
    return [f"chat:{start}" for start in range(0, len(modules()), MODULES_PER_PARTITION)]


def read(_: Path, partition: str) -> Iterator[Document | Dropped]:
    """The conversations of one partition."""
    start = int(partition.removeprefix("chat:"))
    for module, path in modules()[start : start + MODULES_PER_PARTITION]:
        if any(part.startswith("_") for part in module.split(".")):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # templates of lib2to3 and the like
            yield Dropped(f"python/chat/{module}", NAME, "no_python", path.stat().st_size)
            continue
        for name, member in {member.name: member for member in members(tree)}.items():
            yield _document(module, f"{module}.{name}", member)


def members(tree: ast.AST, outer: str = "") -> Iterator[Member]:
    """Public functions, classes and methods with a docstring that answers something."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name, is_class = outer + node.name, isinstance(node, ast.ClassDef)
        kind = "class" if is_class else "method" if outer else "function"
        inside = ", ".join(map(ast.unparse, node.bases)) if is_class else ast.unparse(node.args)
        if len(answer := _answer(node)) >= MIN_ANSWER:
            yield Member(name, kind, f"{node.name}({inside})", answer)
        if is_class:
            yield from members(node, f"{name}.")


def _answer(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    doc = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
    return doc if len(doc) <= MAX_ANSWER else doc.split("\n\n")[0][:MAX_ANSWER].strip()


def _document(module: str, name: str, member: Member) -> Document:
    draw = id_hash(name, "chat")
    thinks, question = draw % 2 == 0, QUESTIONS[draw // 2 % len(QUESTIONS)]
    thought = f"`{name}` is a {member.kind} of the module `{module}`. It is written `{member.signature}`."
    answer = {"role": "assistant", "content": member.answer}
    messages = [
        {"role": "system", "content": "You know Python's standard library." + ("" if thinks else " /no_think")},
        {"role": "user", "content": question.format(name)},
        {**answer, "reasoning_content": thought} if thinks else answer,
        {"role": "user", "content": "How is it written?"},
        {"role": "assistant", "content": f"`{member.signature}`"},
    ]
    text, meta = from_record({"messages": messages})
    return Document(
        id=f"python/chat/{name}",
        text=text,
        source=NAME,
        url=f"python:{name}",
        language="en",
        license=LICENSE,
        meta={**meta, "python": platform.python_version()},
    )
