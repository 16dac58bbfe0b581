"""What a student keeps of its teacher where 52 bytes a token were stored: drawn ids, or the likeliest.

    python launch.py --config=experiments/distill_teacher.py --workdir=runs/distill
    python launch.py --config=experiments/stored_targets.py --workdir=runs/stored
    python launch.py compare --config=experiments/stored_targets.py --workdir=runs/stored

The first command trains the teacher. The second has it speak over all documents of up to 5,000 characters, and trains
one student on 50 draws. The third races students without a teacher, with the teacher itself, and with what was stored
of it in two forms.

Expected time: 5 minutes for the first command on two CPU cores, two for the second, six for the third.
Expected result: 50 drawn ids teach as well as the teacher itself; of the 13 likeliest a student learns less.
Measured 2026-11-22 (jax 0.10.2, two busy cores of an AMD EPYC): bits per byte after 200 steps, five seeds: alone
2.857, 13 likeliest 2.747, the teacher itself 2.618, 50 draws 2.615. The table is in docs/objectives.md.
"""

from ml_collections import ConfigDict

from experiments import distill

WEIGHT, TEACHER = "objective.targets.weight", "objective.distill.teacher"
VARIANTS = {
    "alone": {"set": ((WEIGHT, 0.0),)},
    "the teacher itself": {"set": ((WEIGHT, 0.0), (TEACHER, "runs/distill"))},
    "50 draws": {},
    "13 likeliest": {"set": (("teach.method", "top_k"), ("teach.tokens", 13))},
}


def get_config() -> ConfigDict:
    """The students of `experiments/distill.py`, their documents short ones, so that all are taught in a minute."""
    config = distill.get_config()
    with config.unlocked():
        config.data.recipe = ({**config.data.recipe[0], "max_chars": 5000}, *config.data.recipe[1:])
        config.tokenizer.path = "runs/distill/tokenizer"
        config.teach = ConfigDict()
        config.teach.teacher = "runs/distill"
        config.teach.method = "sample"
        config.teach.tokens = 50
        config.teach.context = 256  # as the teacher was trained
        config.teach.dtype = "float32"
        config.objective.targets = ConfigDict()
        config.objective.targets.weight = 0.9
        config.objective.distill.teacher = ""
        config.optim.learning_rate = 16e-3  # as found there
        config.compare.variants = ConfigDict(VARIANTS)
    return config.lock()
