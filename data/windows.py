"""Overlapping windows over a document that is longer than a model's context."""


def windows(tokens: int, length: int, overlap: float) -> list[tuple[int, int]]:
    """(begin, first predicted) of each window over a document; inputs are tokens begin .. begin + length - 1.

    The target of input i is token i + 1. Windows start `length * (1 - overlap)` apart. Every token is predicted once,
    in the first window that holds it.
    """
    stride = max(1, round(length * (1 - overlap)))
    found, predicted = [], 0
    for begin in range(0, max(tokens - 1, 1), stride):
        found.append((begin, predicted))
        predicted = min(begin + length, tokens - 1)
        if predicted == tokens - 1:
            return found
    return found
