"""Which implementation of an op runs: by name, or by platform, said once in the log."""

import functools

import jax
from absl import logging


@functools.cache  # so that the choice is logged once, not once a layer and trace
def choose(op: str, known: tuple[str, ...], asked: str | None) -> str:
    """The implementation asked for, or the one for this platform. Raises ValueError on an unknown name."""
    if asked is not None and asked not in known:
        raise ValueError(f"{op}: unknown implementation {asked!r}; choose from {', '.join(sorted(known))}")
    chosen = asked or "xla"
    reason = "as asked" if asked else f"picked for {jax.default_backend()}"
    logging.info("%s: implementation %r, %s", op, chosen, reason)
    return chosen
