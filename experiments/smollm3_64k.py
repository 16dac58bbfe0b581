"""SmolLM3-3B's last stage of long context: rows of 65,536 tokens, split over the chips of a `context` axis.

    python launch.py plan --config=experiments/smollm3_64k.py --topology=v5e:16x16
    python launch.py --config=experiments/smollm3_64k.py --config.data.path=DIR --config.tokenizer.path=FILE \\
        --config.start.folder=DIR

The published stage has 36 rows a step; here they are 32, which 256 chips divide. It goes on from the stage of 32k
tokens with another base of the rotation.

Expected time: by its plan 5.8 s a step, 35 hours on 256 chips of v5e; nothing of this size was run.
Expected result: 46.1B tokens, and a plan that takes 5.9 of 15.75 GiB a chip.
"""

from ml_collections import ConfigDict

from experiments import smollm3_3b


def get_config() -> ConfigDict:
    """The first stage's model, with longer rows."""
    config = smollm3_3b.get_config()
    with config.unlocked():
        config.model.rope_theta = 5e6
        config.model.remat = "attention"
        config.mesh = ConfigDict()
        config.mesh.context = 8  # 8,192 tokens of a row on each chip
        config.batch.rows = 32
        config.batch.row_length = 65_536
        config.optim.learning_rate = 2e-5
        config.optim.warmup_steps = 1000
        config.optim.decay_fraction = 0.95
        config.train.steps = 22_000
        config.train.microbatches = 1
    return config
