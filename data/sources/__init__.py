"""One file per kind of input, each yielding documents."""
