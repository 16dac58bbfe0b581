"""Pretraining, then a chat stage with loss on what the assistant says alone, in two modes of reasoning, in minutes.

    python launch.py --config=experiments/chat.py --workdir=runs/chat

The conversations are a demonstration corpus: questions of four forms about the functions, classes and methods of
the standard library, answered by their docstrings; what the assistant thinks, in every second of them, is made by
rule from the signature. Since the docstrings stand in the source that is pretrained on, held-out conversations
measure recall as much as anything. Conversations of your own are .jsonl or .parquet records with `messages`:
`--config.data.sources="{'text': '', 'chat': 'DIR'}"`.

Expected time: 1.5 minutes on two CPU cores.
Expected result: about 2.3 held-out bits per byte, of texts and of what the assistant says; it thinks where it is to.
Measured 2026-11-21 (Python 3.11.7, jax 0.10.2, two cores of an AMD EPYC), with `python benchmarks/chat_modes.py`,
on 9 held-out texts and 44 conversations; the first stage ends at step 195:

    step  text   chat   opens a thought where asked to    where told /no_think
    200   2.395  3.088  0 of 17                           0 of 23
    300   2.279  2.350  17 of 17                          0 of 23
    341   2.247  2.304  17 of 17                          0 of 23
"""

from ml_collections import ConfigDict

from experiments import smoke


def get_config() -> ConfigDict:
    """The smoke run's model, in two stages."""
    config = smoke.get_config()
    with config.unlocked():
        config.data.sources = {"text": "", "chat": "python:chat"}
        config.tokenizer.special = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
        config.train.steps = 0  # as the stages say
        config.train.checkpoint_every = 100
        config.train.eval_every = 100
        config.batch.rows = 16
        config.batch.row_length = 256
        config.batch.stages = (
            {"tokens": 800_000, "mixture": {"text": 1.0}},
            # Whole conversations together, beside some text, so that what was learnt stays.
            {"tokens": 600_000, "mixture": {"text": 0.2, "chat": 0.8}, "packing": "best_fit"},
        )
    return config
