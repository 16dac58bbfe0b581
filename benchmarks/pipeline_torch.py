"""PyTorch's side of pipeline.py: rows of a flat memory map by random access, as nanoGPT and litgpt cut them.

Tokens and targets alone: no segments, no positions, documents run into one another. Imports nothing of Quintet.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from turns import serve


class Rows(torch.utils.data.Dataset):
    def __init__(self, path: Path, row_length: int):
        self.tokens = np.memmap(path, "<u2", "r")
        self.row_length = row_length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.row_length

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin = number * self.row_length
        part = torch.from_numpy(self.tokens[begin : begin + self.row_length + 1].astype(np.int64))
        return part[:-1], part[1:]


def main() -> None:
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    workers = given["workers"]
    loader = torch.utils.data.DataLoader(
        Rows(folder / "tokens.bin", given["row_length"]), given["rows"], shuffle=True, num_workers=workers,
        drop_last=True, persistent_workers=workers > 0,
    )  # fmt: skip
    epochs = itertools.chain.from_iterable(loader for _ in itertools.count())
    serve(epochs, lambda _: 0.0, version=f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
