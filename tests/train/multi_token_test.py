"""Tokens beyond the next in whole steps: parts of a batch, devices, optimisers, memory, and real runs."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
from steps_lab import MESHES, assert_alike, assert_as_one_device, gradients

from core.errors import UserError
from core.files import read_json
from data.config import BatchConfig
from data.pipeline import Batch
from lab import launch, run_losses, smoke
from model import transformer
from model.config import ModelConfig, MultiToken
from objectives.config import MultiTokenConfig, ObjectiveConfig
from objectives_lab import batch_of
from optim.config import OptimConfig, QKClipConfig
from train.config import ExportConfig, TrainConfig
from train.export import export
from train.run import Run, make_program
from train.sharding import make_mesh

KINDS = {
    "parallel": (MultiToken("parallel", 4), MultiTokenConfig(weight=3.0)),
    "sequential": (MultiToken("sequential", 3), MultiTokenConfig(weight=((0.0, 0.3), (0.5, 0.3), (0.5, 0.1)))),
    "trunk": (MultiToken(), MultiTokenConfig(trunk=(0.5, ((0.0, 0.25), (0.3, 0.0))))),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
MODULES = pytest.mark.parametrize("kind", ["parallel", "sequential"])


def make_run(kind, **changes):
    """Four heads of keys and values, so that `tensor` may split them."""
    modules, weights = KINDS[kind]
    model = ModelConfig(64, 2, 32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64, multi_token=modules)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    objective = ObjectiveConfig(z_loss=1e-4, multi_token=weights)
    run = Run(model, BatchConfig(rows=8, row_length=16), optim, TrainConfig(steps=4), seed=0, objective=objective)
    return dataclasses.replace(run, **changes)


alone = functools.cache(lambda kind: gradients(make_run(kind), batch_of(0)))


@pytest.mark.parametrize(
    "kind", ["sequential", *(pytest.param(k, marks=pytest.mark.slow) for k in ("parallel", "trunk"))]
)
def test_microbatches_and_remat_change_nothing(kind):
    run = make_run(kind, train=TrainConfig(steps=4, microbatches=2))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, remat="attention"))
    assert_alike(gradients(run, batch_of(0)), alone(kind))


FEW = (
    ("parallel", {"fsdp": 2, "context": 2}),
    ("sequential", {"tensor": 2, "context": 2}),
    ("trunk", {"context": 4}),
)
ALL = tuple((kind, mesh) for kind in KINDS for mesh in MESHES)


@pytest.mark.parametrize("cases", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_meshes_compute_as_one_device(cases, tmp_path):
    assert_as_one_device(__file__, cases, alone, tmp_path)


def test_qk_clip_holds_the_heads_of_modules():
    """A step of no length from modules with large queries: the next, on the same batch, has the threshold as most."""
    still = {"learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0.0}
    run = make_run("parallel", optim=OptimConfig(qk_clip=QKClipConfig(0.2), **still))
    program = make_program(run, make_mesh())
    state = program.init()
    attention = state.params["multi_token"]["layers"]["attention"]
    attention["query"] = 100 * attention["query"]
    trunk = np.array(state.params["layers"]["attention"]["query"])
    state, before = program.step(state, batch_of(0))
    state, after = program.step(state, batch_of(0))
    assert before["max_logit_LN"].shape == (2 + 3, 4)  # layers, modules
    assert before["max_logit_LN"][:2].max() < 0.2 < before["max_logit_LN"][2:].min()
    assert before["max_logit"] == before["max_logit_LN"].max()
    assert int(before["qk_clipped_heads"]) == 3 * 4
    np.testing.assert_allclose(after["max_logit_LN"][2:], 0.2, rtol=1e-4)
    np.testing.assert_allclose(state.params["layers"]["attention"]["query"], trunk, atol=1e-8)


@MODULES
def test_the_trunk_begins_as_without_modules_and_all_parameters_are_counted(kind):
    model = make_run(kind).model
    params, plain = (
        transformer.init(model, 3),
        transformer.init(dataclasses.replace(model, multi_token=MultiToken()), 3),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.num_parameters
    del params["multi_token"]
    for own, other in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(own, other)


def test_modules_that_are_not_there_are_not_kept(tmp_path):
    with pytest.raises(UserError, match=r"export\.multi_token keeps modules, and model\.multi_token has none"):
        export(ExportConfig(multi_token=True), make_run("trunk"), tmp_path)


@every_kind
def test_real_text_is_learned_with_packing(kind, tmp_path):
    """The next token's loss falls, and every further offset's with it."""
    modules, weights = KINDS[kind]
    model = ModelConfig(258, 2, 32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=64, multi_token=modules)
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=5, decay_fraction=0.2)
    batch = BatchConfig(rows=4, row_length=64)
    objective = ObjectiveConfig(multi_token=weights)
    run = Run(model, batch, optim, TrainConfig(steps=60), seed=0, objective=objective)
    names = {
        "parallel": ["loss_offset_2", "loss_offset_3", "loss_offset_4"],
        "sequential": ["loss_offset_2", "loss_offset_3"],
        "trunk": ["trunk_loss_offset_2", "trunk_loss_offset_3"],
    }[kind]
    losses = np.array(run_losses(tmp_path, run, ("loss", *names)))
    assert (losses[-5:].mean(0) < 0.85 * losses[0]).all(), losses[[0, -1]]


def test_a_run_that_was_cut_goes_on_and_its_modules_draft_its_own_texts(corpus, finished, tmp_path):
    """Parameters equal to the last bit; greedy texts that are the same with drafts and without."""
    for name in ("curated", "tokenizer", "tokens"):
        shutil.copytree(finished / name, tmp_path / "whole" / name)
    modules = ("--config.model.multi_token.kind=sequential", "--config.model.multi_token.tokens=3")
    flags = functools.partial(smoke, tmp_path / "whole", corpus, *modules, "--config.train.eval_every=0")
    result = launch("train", *flags())
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "whole" / "train" / "checkpoints" / "24"
    arrays = read_json(checkpoint / "manifest.json")["arrays"]
    assert any(name.startswith("params/multi_token/") for name in arrays)
    shutil.rmtree(checkpoint)
    result = launch("train", *flags())
    assert "from step 20" in result.stderr, result.stderr
    assert read_json(checkpoint / "manifest.json")["arrays"] == arrays

    texts = {}
    for drafts in (0, 2):
        greedy = ("--config.eval.temperature=0.0", f"--config.eval.drafts={drafts}", "--max-tokens=20")
        result = launch("generate", *flags(*greedy), "--prompt=The ")
        assert result.returncode == 0, result.stderr
        assert ("drafts" in result.stderr) == bool(drafts)
        texts[drafts] = result.stdout
    assert texts[2] == texts[0] != ""


ROOM = {
    "modules": ("parallel", 3, "config model.multi_token.tokens asks for 4 future tokens, and a row holds 3"),
    "trunk": ("trunk", 2, "config objective.multi_token.trunk asks for 3 future tokens, and a row holds 2"),
}


@pytest.mark.parametrize("case", ROOM)
def test_more_tokens_than_a_row_holds_are_refused(case):
    kind, length, message = ROOM[case]
    with pytest.raises(UserError, match=message):
        make_run(kind, batch=BatchConfig(rows=8, row_length=length))


def step_bytes(modules):
    """Of temporary arrays of a compiled step, whose activations are most of it."""
    model = ModelConfig(8192, 12, 256, num_heads=4, num_kv_heads=4, head_dim=64, d_ff=768, multi_token=modules)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1)
    run = Run(model, BatchConfig(rows=8, row_length=1024), optim, TrainConfig(steps=500), seed=0)
    program = make_program(run, make_mesh())
    batch = Batch(*(jax.ShapeDtypeStruct((8, 1024), field.dtype) for field in batch_of(0)))
    return program.step.lower(program.abstract, batch).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_four_parallel_tokens_take_no_more_than_a_seventh_more_memory():
    """Modules run one after another: of each, activations and a block of logits live at a time."""
    assert step_bytes(MultiToken("parallel", 4)) <= 1.15 * step_bytes(MultiToken())
