"""A run over texts and conversations as a user makes it: every verb understands them."""

import json

import numpy as np
import pytest

from core.files import read_json
from data.tokenize import open_split
from lab import WORDS, launch, make_corpus, smoke

pytest.importorskip("jinja2")


@pytest.mark.slow
def test_every_verb_understands_conversations(tmp_path):
    random = np.random.default_rng(0)
    talk = [{"role": "user", "content": " ".join(WORDS)}, {"role": "assistant", "content": ""}]
    records = [
        {"messages": [talk[0], {**talk[1], "content": " ".join(random.permutation(WORDS))}]} for _ in range(40)
    ]
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "talk.jsonl").write_text("\n".join(map(json.dumps, records)))
    flags = smoke(tmp_path / "run", corpus, "--config.tokenizer.special=('<|im_start|>', '<|im_end|>')")
    for verb in ([], ["inspect-data"], ["explain", "--step=21"], ["explain", "--document=talk.jsonl:1"]):
        result = launch(*verb, *flags)
        held_out = "it is held out" in result.stderr
        assert result.returncode == 0 or held_out, result.stderr
    shards = open_split(tmp_path / "run", "heldout")
    heldout = read_json(tmp_path / "run" / "eval" / "eval.json")["heldout"]
    assert heldout["conversations"] == shards.masked.sum() > 0
    own = heldout["by_source"]["jsonl"]
    assert own["bytes"] == shards.predicted_bytes[shards.masked].sum() == own["documents"] * len(" ".join(WORDS))
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert f"{heldout['conversations']} are conversations: of these only what the assistant said" in page
