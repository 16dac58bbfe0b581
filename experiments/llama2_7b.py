"""Llama 2 7B from nothing: 2T tokens, 4M a step, in rows of 4,096.

    python launch.py plan --config=experiments/llama2_7b.py --topology=v4:4x4x4
    python launch.py --config=experiments/llama2_7b.py --config.data.path=DIR --config.tokenizer.path=FILE

Optimiser and batch are the paper's (Touvron et al. 2023), with a linear decay at the end instead of its cosine.

Expected time: by its plan 19.3 s a step, 107 days on 64 chips of v4; nothing of this size was run.
Expected result: 6,738,415,616 parameters, and a plan that takes 24.9 of 30.75 GiB a chip.
"""

from ml_collections import ConfigDict

from model import presets


def get_config() -> ConfigDict:
    """The published batch."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict()
    config.tokenizer = ConfigDict()
    config.tokenizer.path = "tokenizer.model"
    config.model = presets.config("llama-2-7b")
    config.model.dtype = "bfloat16"
    config.model.remat = "branches"
    config.batch = ConfigDict()
    config.batch.rows = 1024
    config.batch.row_length = 4096
    config.optim = ConfigDict()
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 2000
    config.optim.b2 = 0.95
    config.optim.epsilon = 1e-5
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.train = ConfigDict()
    config.train.steps = 476_837  # 2T tokens
    config.train.microbatches = 8  # two rows at a time on each of 64 chips
    return config.lock()
