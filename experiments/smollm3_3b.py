"""SmolLM3-3B's first stage: 3.1B parameters, rows of 4,096 tokens, 2.1M tokens a step.

    python launch.py plan --config=experiments/smollm3_3b.py --topology=v5e:16x16
    python launch.py --config=experiments/smollm3_3b.py --config.data.path=DIR --config.tokenizer.path=FILE

Expected time: by its plan 1.20 s a step, 65 days on 256 chips of v5e; nothing of this size was run.
Expected result: 3,075,098,624 parameters, and a plan that takes 11.3 of 15.75 GiB a chip.
"""

from ml_collections import ConfigDict

from model import presets


def get_config() -> ConfigDict:
    """What the published run sets, at 2 rows a chip of 256."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()
    config.tokenizer = ConfigDict()
    config.tokenizer.path = "tokenizer.json"
    config.model = presets.config("smollm3-3b")
    config.model.dtype = "bfloat16"
    config.model.remat = "branches"  # norms and products of elements are computed again, no matrix products
    config.batch = ConfigDict()
    config.batch.rows = 512
    config.batch.row_length = 4096
    config.optim = ConfigDict()
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 2000
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.mesh = ConfigDict()
    config.mesh.replica = 8  # parameters in 32 parts: fewer than 64 rows a part would be padded when they travel
    config.train = ConfigDict()
    config.train.microbatches = 2
    config.train.steps = 4_720_000
    return config.lock()
