"""The optimisation track of modded-nanogpt, 124M parameters and 524,288 tokens a step, for one GPU of 80 GB.

    python launch.py --config=experiments/optimizer_track_124m.py --config.data.path=DIR --config.tokenizer.path=FILE
    python launch.py compare --config=experiments/optimizer_track_124m.py --config.data.path=DIR \
        --config.tokenizer.path=FILE

DIR holds FineWeb (2B tokens are enough), FILE is GPT-2's tokenizer.json. Sizes, rates, decay and schedule are those
of the track's tuned baseline (`records/track_3_optimization`, result 36: Muon with twelve convergent steps); AdamW
has rate, decay and warm-up of its result 2. The first command trains Muon, and ends with a line that no published
family has such a model, so that it cannot be exported; the second trains each of VARIANTS, on five seeds, on the
tokens that the first made (the verbs `curate` and `tokenize` make them alone).

Where this model is another than the published one:
- The soft cap of the output is 15 tanh(x / 15), there 15 x / sqrt(x^2 + 225).
- All pairs of a head rotate, frequencies from 1 towards 1 / 1024; there a half of them does, over the same range.
- Embedding rows are not normalised before the first layer, there they are. Scaled here, they begin as N(0, 1) too,
  and rate and decay are those that give the same scaled updates. But nothing divides them out as they grow, so
  that the published rate, 0.7, may be too high: it is tuned first.
- Output and down projections and the head begin as all matrices do, sqrt(0.33 / 768) N(0, 1); there they are zeros.
- Norms of queries and keys have learned scales, the head has no bias; there it is the other way round.
- A token sees its own document alone; there the whole row before it. Parameters are float32; there the embedding is
  bfloat16. Momentum of the first steps is corrected for their number.
- What is measured is bits per byte of held-out documents: 3.28 nats a token are 3.28 / ln 2 / (bytes of a token).
So the published steps to 3.28 nats (3,250 with Muon, 5,625 with Adam, of its author undertuned) are a neighbourhood
and not a target; what is compared here is compared here.

Expected time: an estimate, no GPU was at hand: by FLOPs (798M a token, 1.36e18 in all) 57 minutes on an H100 at 40%
of its peak of 989 TFLOP/s; `launch.py plan --topology=h100:1`, which assumes 60%, says 39 minutes and 30 of 60 GiB.
The comparison is 36 such runs, ten of them shorter: 33 hours.
Expected result: 162,306,816 parameters, 124M without the head; nothing of this size was run.
"""

import math

from ml_collections import ConfigDict

D = 768
STD = math.sqrt(0.33 / D)  # of every matrix
MUON_RATE, ADAM_RATE = 0.025, 0.0015
# Learning rates of what is not a matrix inside a layer, whatever the matrices' is. The embedding is multiplied by
# 1 / STD, so its own rate is that of the scaled rows times STD.
AUXILIARY = {"embedding": 0.7 * STD, "head": 0.004, "norm": 0.015, "bias": 0.015}


def multipliers(rate: float) -> dict[str, float]:
    """Of a matrix's learning rate; tuning that scales them all."""
    return {name: own / rate for name, own in AUXILIARY.items()}


def keep_auxiliary(rate: float) -> tuple[tuple[str, float], ...]:
    """The same, as keys of a variant."""
    return tuple((f"optim.groups.{name}.multiplier", factor) for name, factor in multipliers(rate).items())


EMBEDDING = "optim.groups.embedding.multiplier"
ADAM = (
    ("optim.weight_decay", 0.1),
    ("optim.warmup_steps", 250),
    *keep_auxiliary(ADAM_RATE),
)
VARIANTS = {
    "adamw": {
        "set": (("optim.optimizer", "adamw"), ("optim.b1", 0.9), *ADAM),
        "tune": (
            (EMBEDDING, tuple(share * multipliers(ADAM_RATE)["embedding"] for share in (1.0, 0.1))),
            ("optim.learning_rate", (ADAM_RATE, 2 * ADAM_RATE, ADAM_RATE / 2)),
            ("optim.weight_decay", (0.1, 0.2)),
        ),
    },
    # No clip of attention logits beside them: queries and keys are normalised.
    "muon": {
        "set": (("optim.optimizer", "muon"),),
        "tune": (
            (EMBEDDING, tuple(share * multipliers(MUON_RATE)["embedding"] for share in (1.0, 0.1))),
            ("optim.learning_rate", (MUON_RATE, 0.035)),
        ),
    },
    "soap": {
        "set": (("optim.optimizer", "soap"), ("optim.b1", 0.95), *ADAM),
        "tune": (
            (EMBEDDING, tuple(share * multipliers(ADAM_RATE)["embedding"] for share in (1.0, 0.1))),
            ("optim.learning_rate", (ADAM_RATE, 2 * ADAM_RATE)),
        ),
    },
}


def get_config() -> ConfigDict:
    """The track, as near as this model comes."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.heldout_fraction = 0.005
    config.data.shards = 16
    config.tokenizer = ConfigDict()
    config.tokenizer.path = "tokenizer.json"  # GPT-2's: 50,257 ids

    config.model = ConfigDict()
    config.model.vocab_size = 50304
    config.model.num_layers = 12
    config.model.d_model = D
    config.model.num_heads = 6
    config.model.num_kv_heads = 6
    config.model.head_dim = 128
    config.model.d_ff = 4 * D
    config.model.no_rope_every = 0
    config.model.rope_theta = 1024.0
    config.model.qk_norm = True
    config.model.qkv_bias = True
    config.model.output_bias = True
    config.model.attention_scale = 0.12
    config.model.feed_forward = "relu2"
    config.model.feed_forward_bias = True
    config.model.tied_head = False
    config.model.embedding_scale = 1 / STD
    config.model.final_soft_cap = 15.0
    config.model.init_std = STD
    config.model.dtype = "bfloat16"

    config.batch = ConfigDict()
    config.batch.rows = 512
    config.batch.row_length = 1024

    config.optim = ConfigDict()
    config.optim.optimizer = "muon"
    config.optim.learning_rate = MUON_RATE
    config.optim.warmup_steps = 0
    config.optim.decay_fraction = 0.7  # linear, to 0
    config.optim.b1 = 0.95  # of variants that are not Muon
    config.optim.b2 = 0.95
    config.optim.epsilon = 1e-10
    config.optim.weight_decay = 0.05
    config.optim.clip = ConfigDict({"kind": "none"})
    config.optim.muon = ConfigDict()
    config.optim.muon.coefficients = "convergent"  # twelve steps: the track does not count seconds
    config.optim.muon.scaling = "spectral"
    config.optim.groups = ConfigDict()
    for name, multiplier in multipliers(MUON_RATE).items():
        own = config.optim.groups[name] = ConfigDict()
        own.multiplier = multiplier
        own.b1 = 0.8
        own.weight_decay = 0.001
    config.optim.groups.embedding.weight_decay = 0.001 / STD  # its rate is so much lower

    config.train = ConfigDict()
    config.train.steps = 3250
    config.train.microbatches = 16  # 32 rows at a time
    config.train.log_every = 25
    config.train.eval_every = 125
    config.train.checkpoint_every = 650

    config.eval = ConfigDict()
    config.eval.rows = 64
    config.eval.quick_bytes = 10_000_000

    config.compare = ConfigDict()
    config.compare.baseline = "adamw"
    config.compare.seeds = 5
    config.compare.lengths = (0.8462, 1.0)  # 2,750 steps and all
    config.compare.variants = ConfigDict(VARIANTS)
    return config.lock()
