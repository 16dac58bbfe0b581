"""A larger vocabulary for a model that exists, then continued pretraining: the Atom recipe, at laptop size.

    python launch.py --config=experiments/grow_vocabulary.py --workdir=runs/grown
    python launch.py inspect-tokenizer --config=experiments/grow_vocabulary.py --workdir=runs/grown

Atom grew Llama 2 from 32,000 to 65,000 pieces for Chinese. Here the quickstart's 4,096 become 8,192 with pieces
learned from the documents: its own text again, or a folder of another language by `--config.data.path=DIR` in both
lines. Every old id keeps its meaning; a new one begins as the mean of the old pieces that it replaces
(`--config.start.new_rows=mean` or `random` to compare). Bits per byte compare across vocabularies, loss per token
does not.

Expected time: 2 minutes on two CPU cores.
Expected result: fewer tokens a byte, and fewer bits per byte than the 1.536 that the quickstart ended with.
"""

from ml_collections import ConfigDict

from experiments import continual


def get_config() -> ConfigDict:
    """The continual run, with more ids."""
    config = continual.get_config()
    with config.unlocked():
        config.tokenizer.extend_to = 8192
        config.start.new_rows = "mean_of_pieces"
    return config
