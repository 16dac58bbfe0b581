"""Baguettotron: 80 narrow layers, 321M parameters, 200B tokens in rows of 4,096.

    python launch.py plan --config=experiments/baguettotron.py --topology=v5e:4x4
    python launch.py --config=experiments/baguettotron.py --config.data.path=DIR --config.tokenizer.path=FILE

Shape and number of tokens are published; learning rate, batch and schedule are not, and are SmolLM2's of that width.

Expected time: by its plan 1.41 s a step, 6.2 days on 16 chips of v5e; nothing of this size was run.
Expected result: 320,956,992 parameters, and a plan that takes 10.4 of 15.75 GiB a chip.
"""

from ml_collections import ConfigDict

from model import presets


def get_config() -> ConfigDict:
    """Half a million tokens a step."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()
    config.tokenizer = ConfigDict()
    config.tokenizer.path = "tokenizer.json"
    config.model = presets.config("baguettotron")
    config.model.dtype = "bfloat16"
    config.model.remat = "branches"
    config.batch = ConfigDict()
    config.batch.rows = 128
    config.batch.row_length = 4096
    config.optim = ConfigDict()
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 2000
    config.optim.decay_fraction = 0.2
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.01
    config.mesh = ConfigDict()
    # All parameters on each of 16 chips: with a part on each, XLA:TPU multiplies by a sixteenth of 576 features at a
    # time while the next arrives, and by its plan a step takes 4.39 s.
    config.mesh.replica = 16
    config.train = ConfigDict()
    config.train.steps = 381_470  # 200B tokens
    config.train.microbatches = 8  # one row at a time on each of 16 chips
    return config.lock()
