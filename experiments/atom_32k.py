"""Atom's recipe on Llama 2 7B: 65,000 pieces instead of 32,000, then rows of 32k instead of 4k tokens.

    python launch.py --config=experiments/atom_32k.py --workdir=runs/atom \\
        --config.start.folder=Llama-2-7b-hf --config.data.path=DIR

The context grows eightfold by position interpolation (4) and NTK-aware scaling (2) together; published is that both
were used, not with which factors. The corpus was more than a trillion tokens of Chinese, code and English; the two
stages here have the proportions of a continued pretraining, not its size.

Expected time: days on a pod; nothing of this size was run. experiments/grow_vocabulary.py is the recipe on a laptop.
Expected result: 0.3 instead of 1 token a byte of Chinese (docs/benchmarks/vocabulary.md), and rows of 32,768 tokens.
"""

from ml_collections import ConfigDict

from experiments import quickstart


def get_config() -> ConfigDict:
    """The quickstart's documents and loop, with another model and longer rows at the end."""
    config = quickstart.get_config()
    with config.unlocked():
        config.start = ConfigDict()
        config.start.folder = ""
        config.start.new_rows = "mean_of_pieces"
        config.tokenizer = ConfigDict()
        config.tokenizer.extend_to = 65_000
        config.tokenizer.train_mb = 1000.0
        config.model = ConfigDict()
        config.model.dtype = "bfloat16"
        config.model.remat = "full"
        config.model.rope_scaling = ConfigDict()
        config.model.rope_scaling.kind = "interpolation"
        config.model.rope_scaling.factor = 4.0
        config.model.rope_scaling.ntk_factor = 2.0
        config.optim.learning_rate = 1e-4
        config.train.steps = 0  # as the stages say
        config.batch.packing = "best_fit"
        config.batch.stages = (
            {"tokens": 20_000_000_000, "rows": 1024, "row_length": 4096},
            {"tokens": 1_000_000_000, "rows": 128, "row_length": 32_768},
        )
    return config
