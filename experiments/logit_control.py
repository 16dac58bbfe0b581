"""Queries and keys that learn twenty times as fast as all else: attention logits blow up, and what holds them.

    python launch.py --config=experiments/logit_control.py --workdir=runs/logits
    python launch.py --config=experiments/logit_control.py --workdir=runs/clipped --config.optim.qk_clip.threshold=20
    PYTHONPATH=. python benchmarks/logit_control.py

The first two train on the Python installation's text; with a clip, or a rate that adapts, the report draws every
head. The third trains each of VARIANTS on a task that attention alone can do, repeating sixteen random tokens, on
five seeds, and prints a table.

Expected time: half a minute for a run on two CPU cores, five minutes for the table.
Expected result: without control the task is never learned (ln 32 = 3.47 nats), its logits beyond a thousand.
Measured 2026-11-22 (jax 0.10.2, two busy cores of an AMD EPYC), nats of the last 30 of 200 steps, mean of five seeds:
3.46 without control, 0.29 with QK-Clip at 20 (0.35 by group), 0.08 with it and the rate of heads that follows, 0.14
with QK-norm, 1.39 with a soft cap at 50. A clip at 100 saves some seeds only: 2.37.
"""

from ml_collections import ConfigDict

from experiments import smoke

# What is put beside the config below.
VARIANTS = {
    "no control": {},
    "QK-Clip at 100": {"optim.qk_clip.threshold": "100"},
    "QK-Clip at 20": {"optim.qk_clip.threshold": "20"},
    "QK-Clip at 20, by group": {"optim.qk_clip.threshold": "20", "optim.qk_clip.treatment": "group"},
    "threshold that follows, 20 to 100": {
        "optim.qk_clip.threshold": "100",
        "optim.adaptive.slack": "1.5",
        "optim.adaptive.least_threshold": "20",
    },
    "rate of heads that follows": {"optim.adaptive.rate": "heads"},
    "rate of all that follows": {"optim.adaptive.rate": "all"},
    "QK-Clip at 20, rate of heads that follows": {
        "optim.qk_clip.threshold": "20",
        "optim.adaptive.rate": "heads",
        "optim.adaptive.limit": "40",
    },
    "soft cap at 50": {"model.attention_soft_cap": "50"},
    "QK-norm": {"model.qk_norm": "True"},
    "z-loss 1e-4": {"objective.z_loss": "1e-4"},
}


def get_config() -> ConfigDict:
    """The smoke run, smaller, its queries and keys at twenty times the rate."""
    config = smoke.get_config()
    with config.unlocked():
        config.tokenizer.vocab_size = 512
        config.batch.rows = 16
        config.batch.row_length = 32
        config.model.num_layers = 2
        config.model.d_model = 32
        config.model.head_dim = 8
        config.model.d_ff = 64
        config.model.no_rope_every = 0
        config.model.init_std = 0.18  # 1 / sqrt(d_model)
        config.optim.learning_rate = 1e-2
        config.optim.warmup_steps = 10
        config.optim.decay_fraction = 0.0
        config.optim.groups = {"heads": {"pattern": "layers/attention/(query|key)", "multiplier": 20.0}}
        config.train.steps = 200
        config.train.checkpoint_every = 100
    return config
