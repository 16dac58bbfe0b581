"""Runs in the peer's environment: what transformers makes of an exported folder. Imports nothing of ours."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: Path, questions: Path, answers: Path) -> None:
    asked = json.loads(questions.read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text)["input_ids"] for text in asked["texts"]]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded]
    (answers / "tokens.json").write_text(json.dumps({"ids": encoded, "texts": decoded}))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].numpy() for ids in asked["ids"]]
        greedy = [
            model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0].tolist()
            for ids in asked["ids"][:2]
        ]
    np.savez(answers / "logits.npz", *logits)
    (answers / "greedy.json").write_text(json.dumps(greedy))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
