"""Runs in the peer's environment: what transformers makes of a folder. Imports nothing of ours.

peer.py QUESTIONS ANSWERS     a JSON list of questions, each {"task": ..., ...}; one .npz or .json of answers each
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(2)


def load(folder: str, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def unmade(config: dict):
    """A model of this config without its parameters."""
    kind = config.pop("model_type")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))


def size(config: dict, **_) -> dict:
    """Parameters of a model of this config."""
    return {"parameters": np.array(sum(p.numel() for p in unmade(config).parameters()))}


def frequencies(config: dict, **_) -> dict:
    """Rotary frequencies of a model of this config, and their factor."""
    model = unmade(config)
    rotary = type(model.model.rotary_emb)(model.config)  # again, on a device that holds numbers
    return {"inv_freq": rotary.inv_freq.float().numpy(), "factor": np.array(rotary.attention_scaling)}


def logits(folder: str, ids: list, **_) -> dict:
    """Logits of each list of ids, alone; of all together, padded on the left; in bfloat16; and the gradients."""
    model, found = load(folder), {}
    with torch.no_grad():
        for number, one in enumerate(ids):
            found[f"alone{number}"] = model(torch.tensor([one])).logits[0].numpy()
        longest = max(map(len, ids))
        padded = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        together = model(padded, attention_mask=mask, position_ids=positions).logits
        for number, one in enumerate(ids):
            found[f"padded{number}"] = together[number, longest - len(one) :].numpy()
        # Prompts of different lengths continue together, greedily and through the cache.
        greedy = model.generate(
            padded[-3:], attention_mask=mask[-3:], max_new_tokens=12, min_new_tokens=12, do_sample=False
        )
        found["greedy"] = greedy[:, -12:].numpy()
    one = torch.tensor([ids[-1]])
    torch.nn.functional.cross_entropy(model(one).logits[0, :-1], one[0, 1:]).backward()
    for name, parameter in model.named_parameters():
        found[f"gradient {name}"] = parameter.grad.numpy()
    half = load(folder, torch.bfloat16)
    with torch.no_grad():
        found["bfloat16"] = np.concatenate([half(torch.tensor([one])).logits[0].float().numpy() for one in ids])
    return found


def loaded(folder: str, ids: list, **_) -> dict:
    """Logits of a list of ids, and the tensors that the model has no place for, or lacks."""
    options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(folder, **options)
    with torch.no_grad():
        found = {"logits": model.eval()(torch.tensor([ids])).logits[0].numpy()}
    return found | {kind: np.array(sorted(info[f"{kind}_keys"]), str) for kind in ("unexpected", "missing")}


def one_step(folder: str, ids: list, out: str, learning_rate: float, **_) -> dict:
    """Continues training by one step of plain gradient descent and writes the folder anew."""
    model, one = load(folder), torch.tensor([ids])
    torch.nn.functional.cross_entropy(model(one).logits[0, :-1], one[0, 1:]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= learning_rate * parameter.grad
        after = model(one).logits[0].numpy()
    model.save_pretrained(out)
    return {"logits": after}


def tokens(folder: str, texts: list, **_) -> dict:
    """Ids of texts, and texts of those ids."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return {"ids": ids, "texts": [tokenizer.decode(one, skip_special_tokens=True) for one in ids]}


def main(questions: Path, answers: Path) -> None:
    for number, question in enumerate(json.loads(questions.read_text())):
        found = globals()[question["task"]](**question)
        if question["task"] == "tokens":
            (answers / f"{number}.json").write_text(json.dumps(found))
        else:
            np.savez(answers / f"{number}.npz", **found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
