"""Rotary frequencies beside transformers, pair by pair, at the sizes and lengths of real models."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from models import STRETCHED
from texts import Ask

from experiments import atom_32k, smollm3_128k
from model.config import ModelConfig, RopeScaling
from model.hf_config import to_hf
from model.position import rotary_frequencies
from model.presets import PRESETS

BOUND = 1e-6  # relative, of a frequency and of the factor of cosine and sine


def stretched() -> dict[str, tuple[ModelConfig, int]]:
    """Name to config and longest row: every way on Llama 2, presets that stretch, and the two experiments."""
    llama, found = PRESETS["llama-2-7b"], {}
    for name, way in STRETCHED.items():
        way = dataclasses.replace(way, original_length=4096 if way.original_length else 0)
        found[f"llama-2-7b, {name}"] = dataclasses.replace(llama, rope_scaling=way), 4096
    found |= {name: (config, 8192) for name, config in PRESETS.items() if config.rope_scaling.kind != "none"}
    for name, base, experiment in (
        ("experiments/atom_32k.py", "llama-2-7b", atom_32k.get_config()),
        ("experiments/smollm3_128k.py", "smollm3-3b", smollm3_128k.get_config()),
    ):
        scaling = RopeScaling(**experiment.model.rope_scaling)
        stages = experiment.batch.get("stages", ())
        length = stages[-1]["row_length"] if stages else experiment.batch.row_length
        found[name] = dataclasses.replace(PRESETS[base], rope_scaling=scaling), length
    return found


def compare_rotary(ask: Ask) -> bool:
    """A row a way to stretch: largest relative difference of frequencies, and the factor of cosine and sine."""
    print("\n| RoPE | pairs | frequencies | factor | differs by | holds |\n|---|---|---|---|---|---|", flush=True)
    models, good = stretched(), True
    described = [
        to_hf(config, max_positions=length, bos=1, eos=2, dtype="float32") for config, length in models.values()
    ]
    with tempfile.TemporaryDirectory() as folder:
        answers = ask(Path(folder), [{"task": "frequencies", "config": config} for config in described])
    for (name, (config, _)), answer in zip(models.items(), answers):
        ours_R, factor = rotary_frequencies(config)
        theirs_R, their_factor = answer["inv_freq"].astype(np.float64), float(answer["factor"])
        assert ours_R.shape == theirs_R.shape, name
        off, factor_off = float(np.abs(ours_R / theirs_R - 1).max()), abs(factor / their_factor - 1)
        holds = off < BOUND and factor_off < BOUND
        good &= holds
        shown = f"{len(ours_R)} | {off:.1e} | {factor:.4f} | {factor_off:.1e}"
        print(f"| {name} | {shown} | {'yes' if holds else 'NO'} |", flush=True)
    return good
