"""Which optimiser ends lowest on the same model, data, batch and order, and in how many steps it is where AdamW ends.

    python launch.py --config=experiments/optimizer_race.py --workdir=runs/race
    python launch.py compare --config=experiments/optimizer_race.py --workdir=runs/race

It mirrors the optimisation track of modded-nanogpt (a fixed model, steps to a loss, everything but the optimiser
held) at a size that two CPU cores finish.

Expected time:
Expected result:
"""

from ml_collections import ConfigDict

from experiments import quickstart

RATES = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)


def get_config() -> ConfigDict:
    """The quickstart's line, a shorter run, and what is compared."""
    config = quickstart.get_config()
    with config.unlocked():
        config.tokenizer.vocab_size = 2048
        config.model.head_dim = 32
        config.model.qk_norm = True
        config.model.tied_head = False
        config.model.feed_forward = "relu2"
        config.batch.rows = 8
        config.batch.row_length = 256
        config.optim.warmup_steps = 10
        config.optim.decay_fraction = 0.7
        config.train.steps = 400
        config.train.eval_every = 20
        config.train.log_every = 5
        config.train.checkpoint_every = 1000
        config.eval.quick_bytes = 100_000
        config.compare = ConfigDict()
        config.compare.baseline = "adamw"
        config.compare.seeds = 5
        config.compare.lengths = (0.7, 0.85, 1.0)
        config.compare.variants = ConfigDict()
        adamw = config.compare.variants.adamw = ConfigDict()
        adamw.tune = (
            ("optim.learning_rate", RATES),
            ("optim.b2", (0.9, 0.95, 0.99)),
            ("optim.weight_decay", (0.03, 0.1, 0.3)),
        )
    return config.lock()
