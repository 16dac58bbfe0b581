"""Whether predicting further tokens of code lowers the loss of the next one, at equal compute.

    python launch.py --config=experiments/multi_token_race.py --workdir=runs/multi_token
    python launch.py compare --config=experiments/multi_token_race.py --workdir=runs/multi_token

The Python installation's own text is code for 98% of its bytes. All runs take the same FLOPs: a step with modules or
further offsets costs more, what is computed again in the backward pass included, and there are fewer of them.

Expected time: a minute for the first command; for the second, 15 runs of half a minute on two CPU cores.
Expected result: no kind ends below the next token alone at 1M parameters, too few to gain.
Measured 2026-11-22 (jax 0.10.2, two busy cores of an AMD EPYC): bits per byte of three seeds: next token 2.278,
2 tokens by a sequential module 2.375, 3 by the trunk 2.453, 2 and 4 by parallel modules 2.478 and 2.751.
"""

from ml_collections import ConfigDict

from experiments import quickstart

KIND, TOKENS, WEIGHT = "model.multi_token.kind", "model.multi_token.tokens", "objective.multi_token.weight"
FALLING = ((0.0, 0.5), (0.33, 0.5), (0.67, 0.0)), ((0.0, 0.25), (0.33, 0.0))
# FLOPs of a step without are 6.49M a token. To it comes, in parts of it: a parallel module 0.576, a sequential one
# 0.616, an offset of the trunk 0.323.
VARIANTS = {
    "next token": {},
    # Gloeckle et al.: the losses added up, so that three modules weigh 3.
    "parallel, 2 tokens": {"set": ((KIND, "parallel"), (TOKENS, 2), (WEIGHT, 1.0)), "lengths": (0.635,)},
    "parallel, 4 tokens": {"set": ((KIND, "parallel"), (TOKENS, 4), (WEIGHT, 3.0)), "lengths": (0.367,)},
    # DeepSeek-V3: 0.3, then 0.1 for the last third.
    "sequential, 2 tokens": {
        "set": ((KIND, "sequential"), (TOKENS, 2), (WEIGHT, ((0.0, 0.3), (0.676, 0.3), (0.676, 0.1)))),
        "lengths": (0.619,),
    },
    # No parameters: further tokens count less and less, and nothing at the end.
    "trunk, 3 tokens": {"set": (("objective.multi_token.trunk", FALLING),), "lengths": (0.607,)},
}


def get_config() -> ConfigDict:
    """The quickstart's line, shorter rows, a shorter run, and what is compared."""
    config = quickstart.get_config()
    with config.unlocked():
        config.tokenizer.vocab_size = 2048
        config.batch.row_length = 64
        config.optim.warmup_steps = 10
        config.optim.decay_fraction = 0.7
        config.train.steps = 300
        config.train.eval_every = 100
        config.train.log_every = 10
        config.train.checkpoint_every = 1000
        config.eval.quick_bytes = 30_000
        config.eval.overlap = 0.0  # half the time
        config.compare = ConfigDict()
        config.compare.baseline = "next token"
        config.compare.seeds = 3
        config.compare.variants = ConfigDict(VARIANTS)
    return config.lock()
