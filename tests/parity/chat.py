"""Runs in the peer's environment: what transformers makes of the templates of tests/data/chat_cases.py.

    .venv-parity/bin/python tests/parity/chat.py --check    compares with tests/data/chat_golden.json, in make parity
    .venv-parity/bin/python tests/parity/chat.py            writes that file anew, after a change of the cases

For every template and conversation: the text, the text with a generation prompt, and which tokens are the assistant's
where the template marks them. Tokens are bytes, and the tokens of the templates. Imports nothing of ours.
"""

import json
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parents[1] / "data"
sys.path.insert(0, str(DATA))
import chat_cases


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and a token for each of the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=chat_cases.BOS, eos_token=chat_cases.EOS)
    fast.add_special_tokens({"additional_special_tokens": list(chat_cases.SPECIAL)})
    return fast


def answers(tokenizer: PreTrainedTokenizerFast, source: str, messages: list, variables: dict) -> dict:
    common = {"conversation": messages, "chat_template": source, **variables}
    try:
        found = {
            "text": tokenizer.apply_chat_template(**common, tokenize=False),
            "prompt": tokenizer.apply_chat_template(**common, tokenize=False, add_generation_prompt=True),
        }
    except Exception as error:  # noqa: BLE001 - what the template raised
        return {"error": str(error)}
    if re.search(r"\bgeneration -?%}", source):
        encoded = tokenizer.apply_chat_template(**common, return_dict=True, return_assistant_tokens_mask=True)
        found["mask"] = "".join(map(str, encoded["assistant_masks"]))
    return found


def main() -> None:
    tokenizer = byte_tokenizer()
    golden = {
        name: {
            key: answers(tokenizer, source, messages, variables)
            for key, (messages, variables) in chat_cases.CONVERSATIONS.items()
        }
        for name, source in {**chat_cases.TEMPLATES, "ours": chat_cases.OURS.read_text()}.items()
    }
    path = DATA / "chat_golden.json"
    if "--check" not in sys.argv:
        path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    differ = [f"{name}/{key}" for name, own in golden.items() for key in own if own[key] != recorded[name].get(key)]
    print(f"chat templates: {sum(map(len, golden.values()))} conversations, differing from those recorded: {differ}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
