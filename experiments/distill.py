"""In how many steps a student with a better teacher is where it ends without one, and which signal helps how much.

    python launch.py --config=experiments/distill_teacher.py --workdir=runs/distill
    python launch.py compare --config=experiments/distill.py --workdir=runs/distill

The first command trains the teacher, the second its students in the same workdir, from the same tokens: five seeds of
each variant, over shares of the steps that are whole schedules. One student alone, with the teacher at runs/distill:

    python launch.py --config=experiments/distill.py --workdir=runs/student

Expected time: 5 minutes for the first command on two CPU cores, half a minute for each of the 49 runs of the second.
Expected result: the student with its teacher's distributions ends below the one without in 0.7 of the steps.
Measured 2026-11-22 (jax 0.10.2, two busy cores of an AMD EPYC), 40 minutes: bits per byte after 200 steps, five
seeds: alone 2.478, with its features 2.426, value relations 2.366, attention maps 2.364, distributions 2.228 (where
the other ends in 0.51 of the steps; below it in 0.7, p = 0.0017), all of them 2.188. The table and its limits are in
docs/objectives.md.
"""

from ml_collections import ConfigDict

from experiments import distill_teacher

DISTILL = "objective.distill"
VARIANTS = {
    # The learning rate is the one that is best without a teacher.
    "alone": {"set": ((f"{DISTILL}.teacher", ""),), "tune": (("optim.learning_rate", (8e-3, 4e-3, 16e-3, 32e-3)),)},
    "distributions": {"tuned_as": "alone", "lengths": (0.5, 0.7, 1.0)},
    # One signal at a time, each beside the cross-entropy alone.
    "features": {"set": ((f"{DISTILL}.weight", 0.0), (f"{DISTILL}.features.weight", 1.0)), "tuned_as": "alone"},
    "maps": {"set": ((f"{DISTILL}.weight", 0.0), (f"{DISTILL}.attention.maps", 1.0)), "tuned_as": "alone"},
    "values": {"set": ((f"{DISTILL}.weight", 0.0), (f"{DISTILL}.attention.values", 1.0)), "tuned_as": "alone"},
    "all": {
        "set": (
            (f"{DISTILL}.features.weight", 1.0),
            (f"{DISTILL}.attention.maps", 1.0),
            (f"{DISTILL}.attention.values", 1.0),
        ),
        "tuned_as": "alone",
        "lengths": (0.5, 1.0),
    },
}


def get_config() -> ConfigDict:
    """The teacher's line; half its depth and width, rows of a quarter, a seventh of its steps."""
    config = distill_teacher.get_config()
    with config.unlocked():
        config.objective = ConfigDict()
        config.objective.distill = ConfigDict()
        config.objective.distill.teacher = "runs/distill"
        config.objective.distill.dtype = "float32"  # of a CPU
        config.objective.distill.weight = 0.9

        config.batch.row_length = 64
        config.model.num_layers = 2
        config.model.d_model = 64
        config.model.num_heads = 2
        config.model.num_kv_heads = 1
        config.model.d_ff = 192
        config.model.init_std = 0.125  # 1 / sqrt(d_model)

        config.optim.warmup_steps = 10
        config.optim.decay_fraction = 0.7
        config.train.steps = 200
        config.train.eval_every = 50
        config.train.log_every = 10
        config.train.checkpoint_every = 1000
        config.eval.quick_bytes = 30_000
        config.eval.overlap = 0.0  # half the time

        config.compare = ConfigDict()
        config.compare.baseline = "alone"
        config.compare.seeds = 5
        config.compare.variants = ConfigDict(VARIANTS)
    return config.lock()
