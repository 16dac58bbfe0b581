"""Five stages in two minutes, in the proportions of SmolLM3: three of pretraining, two with longer rows.

    python launch.py --config=experiments/stages.py --workdir=runs/stages

Each stage has its own mixture of sources, rows and packing; a source goes on where the stage before left it. The
weights are SmolLM3's of web, code and math, put on the three sources of the Python installation. Look before a long
run with `launch.py inspect-data`, and at any step with `launch.py explain`.

Expected time: 2 minutes on two CPU cores.
Expected result: about 2.4 bits per byte; the model is the smoke run's.
Measured 2026-11-21 (Python 3.11.7, jax 0.10.2, two cores of an AMD EPYC): 2.340 after 313 steps, 641k tokens.
"""

from ml_collections import ConfigDict

from experiments import smoke

SOURCES = ("python-source", "python-topics", "python-docstrings")


def get_config() -> ConfigDict:
    """The smoke run, in five stages."""
    config = smoke.get_config()
    with config.unlocked():
        config.train.steps = 0  # as the stages say
        config.train.checkpoint_every = 50
        config.train.keep_every = 100  # kept for good, so that `explain` has a checkpoint near every step
        config.train.eval_every = 100
        config.batch.rows = 16
        config.batch.row_length = 128
        config.batch.stages = (
            {"tokens": 400_000, "mixture": dict(zip(SOURCES, (0.85, 0.12, 0.03)))},
            {"tokens": 100_000, "mixture": dict(zip(SOURCES, (0.75, 0.15, 0.10)))},
            {"tokens": 60_000, "mixture": dict(zip(SOURCES, (0.63, 0.24, 0.13)))},
            # Longer rows at the same number of tokens a step, whole documents together.
            {
                "tokens": 40_000,
                "mixture": dict(zip(SOURCES, (0.6, 0.3, 0.1))),
                "rows": 4,
                "row_length": 512,
                "packing": "best_fit",
            },
            {
                "tokens": 40_000,
                "mixture": dict(zip(SOURCES, (0.6, 0.3, 0.1))),
                "rows": 2,
                "row_length": 1024,
                "packing": "best_fit",
            },
        )
    return config
