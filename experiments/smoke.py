"""The quickstart in seconds: too small to learn much, it shows that every stage works here.

    python launch.py --config=experiments/smoke.py --workdir=runs/smoke

Expected time: half a minute on two CPU cores.
Expected result: about 3 bits per byte, nothing to be proud of.
"""

from ml_collections import ConfigDict

from experiments import quickstart


def get_config() -> ConfigDict:
    """The quickstart, smaller everywhere."""
    config = quickstart.get_config()
    with config.unlocked():
        config.data.heldout_fraction = 0.01
        config.tokenizer.vocab_size = 1024
        config.tokenizer.train_mb = 1.0
        config.batch.rows = 8
        config.batch.row_length = 64
        config.model.num_layers = 4
        config.model.d_model = 64
        config.model.num_heads = 4
        config.model.num_kv_heads = 2
        config.model.head_dim = 16
        config.model.d_ff = 128
        config.optim.warmup_steps = 5
        config.train.steps = 40
        config.train.log_every = 2
        config.train.eval_every = 20
        config.train.checkpoint_every = 10
        config.eval.quick_bytes = 5_000
        config.eval.sample_tokens = 32
    return config
