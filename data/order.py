"""The order of everything: permutations of any length that need no memory and have inverses; draws by number."""

import hashlib

import numpy as np

ROUNDS = 6  # of the Feistel network; 4 suffice in theory for a good round function


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed that differs for every list of parts, the same in any process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(seed: int, index: np.ndarray) -> np.ndarray:
    """A number of [0, 1) for each index: the outputs of SplitMix64 by their number."""
    state = np.asarray(index, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return (_scramble(state) >> np.uint64(11)) * 2.0**-53


def _scramble(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


class Permutation:
    """A pseudo-random permutation of range(length): a Feistel network over the next power of 4, walked back in.

    Indices outside the range are sent through again until they fall inside (cycle walking; under 4 rounds on
    average), which keeps it a permutation. Vectorised over arrays of indices.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.half_bits = np.uint64(max(1, ((max(length, 2) - 1).bit_length() + 1) // 2))
        self.mask = np.uint64((1 << int(self.half_bits)) - 1)
        keys = [derive_seed(seed, length, number) for number in range(ROUNDS)]
        self.keys = np.array(keys, np.uint64)

    def __call__(self, index: np.ndarray | int) -> np.ndarray:
        """Where each index goes."""
        return self._walk(index, self._forward)

    def inverse(self, index: np.ndarray | int) -> np.ndarray:
        """Where each index came from."""
        return self._walk(index, self._backward)

    def _walk(self, index: np.ndarray | int, step) -> np.ndarray:
        found = step(np.atleast_1d(np.asarray(index, np.uint64)))
        while (outside := found >= self.length).any():
            found[outside] = step(found[outside])
        return found.astype(np.int64).reshape(np.shape(index))

    def _forward(self, value: np.ndarray) -> np.ndarray:
        left, right = value >> self.half_bits, value & self.mask
        for key in self.keys:
            left, right = right, left ^ self._mix(right, key)
        return left << self.half_bits | right

    def _backward(self, value: np.ndarray) -> np.ndarray:
        left, right = value >> self.half_bits, value & self.mask
        for key in self.keys[::-1]:
            left, right = right ^ self._mix(left, key), left
        return left << self.half_bits | right

    def _mix(self, half: np.ndarray, key: np.uint64) -> np.ndarray:
        """The keyed half, scrambled."""
        return _scramble(half + key) & self.mask
