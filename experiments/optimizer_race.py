"""Which optimiser ends lowest on the same model, data, batch and order, and in how many steps it is where AdamW ends.

    python launch.py --config=experiments/optimizer_race.py --workdir=runs/race
    python launch.py compare --config=experiments/optimizer_race.py --workdir=runs/race

It mirrors the optimisation track of modded-nanogpt (a fixed model, steps to a loss, all but the optimiser held;
`experiments/optimizer_track_124m.py` is that track) at a size that two CPU cores finish. AdamW has the larger
budget for tuning, eleven runs, the others five. NorMuon, here with cautious decay as in the speedrun, and those that
differ in how they hold attention logits take Muon's rate.

Expected time: half a minute for the first command; for the second, 91 runs of about a minute on two CPU cores.
Expected result: Muon ends below AdamW in 0.85 of its steps.
Measured 2026-11-22 (jax 0.10.2, two cores of an AMD EPYC), 90 minutes: bits per byte after 120 steps, five seeds:
Muon 2.215 (below AdamW in 0.85 of the steps, p = 0.0003), NorMuon 2.204, MuonClip as Muon, Shampoo 2.301, AdamW
2.342, SOAP 2.371. The table and its limits are in docs/optimizers.md.
"""

from ml_collections import ConfigDict

from experiments import quickstart

RATES = ("optim.learning_rate", (8e-3, 4e-3, 16e-3, 2e-3, 32e-3))
MUON = (("optim.optimizer", "muon"), ("optim.muon.dtype", "float32"))
VARIANTS = {
    "adamw": {
        "tune": (
            RATES,
            ("optim.b2", (0.95, 0.9, 0.8, 0.99)),
            ("optim.weight_decay", (0.1, 0.3, 1.0, 0.03)),
        )
    },
    "muon": {"set": MUON, "tune": (RATES,), "lengths": (0.7, 0.85, 1.0)},
    "normuon": {"set": (*MUON, ("optim.muon.normuon_b2", 0.95), ("optim.cautious_decay", True)), "tuned_as": "muon"},
    "soap": {"set": (("optim.optimizer", "soap"), ("optim.b1", 0.95)), "tune": (RATES,)},
    "shampoo": {"set": (("optim.optimizer", "shampoo"),), "tune": (RATES,)},
    # How attention logits are held, all with Muon. Where none comes near the threshold, these are Muon's own runs.
    "muonclip": {"set": (*MUON, ("optim.qk_clip.threshold", 100.0)), "tuned_as": "muon"},
    "muon + rate follows logits": {
        "set": (*MUON, ("optim.adaptive.rate", "heads")),
        "tuned_as": "muon",
    },
    "muonclip, threshold follows": {
        "set": (*MUON, ("optim.qk_clip.threshold", 100.0), ("optim.adaptive.slack", 1.5)),
        "tuned_as": "muon",
    },
    "muon + soft cap": {"set": (*MUON, ("model.attention_soft_cap", 50.0)), "tuned_as": "muon"},
    "muon + QK-norm": {"set": (*MUON, ("model.qk_norm", True)), "tuned_as": "muon"},
    "muon + z-loss": {"set": (*MUON, ("objective.z_loss", 1e-4)), "tuned_as": "muon"},
}


def get_config() -> ConfigDict:
    """The quickstart's line, a shorter run, and what is compared."""
    config = quickstart.get_config()
    with config.unlocked():
        config.tokenizer.vocab_size = 2048
        config.model.tied_head = False
        config.batch.rows = 8
        config.batch.row_length = 256
        config.optim.warmup_steps = 10
        config.optim.decay_fraction = 0.7
        config.train.steps = 120
        config.train.eval_every = 40
        config.train.log_every = 10
        config.train.checkpoint_every = 1000
        config.eval.quick_bytes = 30_000
        config.eval.overlap = 0.0  # half the time
        config.compare = ConfigDict()
        config.compare.baseline = "adamw"
        config.compare.seeds = 5
        config.compare.variants = ConfigDict(VARIANTS)
    return config.lock()
