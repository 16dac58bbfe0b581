"""Teachers in whole steps and whole runs: parts of a batch, devices, resumption, refusals."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from steps_lab import MESHES, assert_alike, assert_as_one_device, gradients

from core.errors import UserError
from core.files import read_json
from data.config import BatchConfig
from lab import ROOT, launch, on_devices, smoke
from model import transformer
from model.config import ModelConfig
from model.hf import read_params
from model.hf_config import read_config
from objectives.config import AttentionConfig, DistillConfig, FeaturesConfig, ObjectiveConfig
from objectives_lab import batch_of
from optim.config import OptimConfig
from train.config import MeshConfig, TrainConfig
from train.run import Run, make_program
from train.sharding import abstract_mesh, make_mesh
from train.teacher import Teacher, find_teacher, layout, load_teacher, require_same_tokenizer

STUDENT = ModelConfig(64, 2, 32, num_heads=4, num_kv_heads=4, head_dim=8, d_ff=64)
TEACHER = ModelConfig(64, 3, 48, num_heads=4, num_kv_heads=2, head_dim=12, d_ff=64)
KINDS = {
    "forward": DistillConfig(teacher="t", weight=((0.0, 1.0), (1.0, 0.5)), temperature=2.0),
    "reverse": DistillConfig(teacher="t", divergence="reverse_kl"),
    "mean": DistillConfig(teacher="t", divergence="jensen_shannon", temperature=2.0),
    "inside": DistillConfig(
        teacher="t", weight=0.0, features=FeaturesConfig(1.0), attention=AttentionConfig(1.0, 0.5)
    ),
}


def make_run(kind, **changes):
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_fraction=0.0)
    run = Run(
        STUDENT, BatchConfig(rows=8, row_length=16), optim, TrainConfig(steps=3), seed=0,
        objective=ObjectiveConfig(distill=KINDS[kind]), teacher=Teacher(Path("t"), 0, TEACHER),
    )  # fmt: skip
    return dataclasses.replace(run, **changes)


alone = functools.cache(lambda kind: gradients(make_run(kind), batch_of(0)))


@pytest.mark.parametrize(
    "kind", ["forward", "inside", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("reverse", "mean"))]
)
def test_microbatches_and_remat_change_nothing(kind):
    run = make_run(kind, train=TrainConfig(steps=3, microbatches=2))
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, remat="attention"))
    assert_alike(gradients(run, batch_of(0)), alone(kind))


FEW = (
    ("forward", {"fsdp": 2, "tensor": 2}),
    ("inside", {"fsdp": 2, "context": 2}),
)
ALL = tuple((kind, mesh) for kind in KINDS for mesh in MESHES)


@pytest.mark.parametrize("cases", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_meshes_compute_as_one_device(cases, tmp_path):
    assert_as_one_device(__file__, cases, alone, tmp_path)


def test_the_teacher_lies_on_the_mesh_by_the_same_rules_and_in_its_own_dtype():
    teacher = Teacher(Path("t"), 0, dataclasses.replace(TEACHER, dtype="bfloat16"))
    program = make_program(make_run("forward", teacher=teacher), make_mesh())
    laid_out = program.teacher[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(laid_out)} == {np.dtype("bfloat16")}
    for name in ("query", "output"):
        own, students = laid_out["layers"]["attention"][name], program.shardings.params["layers"]["attention"][name]
        assert own.sharding == students


def test_a_mesh_that_does_not_split_the_teacher_is_refused_by_its_name():
    """With 4 of `tensor`, the 2 key heads of the teacher."""
    teacher, mesh = make_run("forward").teacher, MeshConfig(tensor=4)
    with pytest.raises(UserError, match="teacher/layers/attention/key"):
        layout(teacher, abstract_mesh(mesh, 4, 1), mesh)


def test_another_vocabulary_is_refused():
    larger = dataclasses.replace(TEACHER, vocab_size=96)
    with pytest.raises(UserError, match=r"teacher predicts 96 tokens and model.vocab_size is 64; .* do not compare"):
        make_run("forward", teacher=Teacher(Path("t"), 0, larger))


# Whole runs. The teacher is the smoke run that all tests share; the student reads the same tokens.
SHAPE = ("--config.model.num_layers=2", "--config.model.d_model=32", "--config.model.num_kv_heads=4")
SIGNALS = (
    "--config.objective.distill.features.weight=0.5",
    "--config.objective.distill.attention.maps=0.5",
    "--config.objective.distill.attention.values=0.5",
)


def taught(workdir, corpus, teacher, *more):
    distill = (*SIGNALS, f"--config.objective.distill.teacher={teacher}")
    return smoke(workdir, corpus, *SHAPE, *distill, "--config.train.eval_every=12", *more)


@pytest.fixture(scope="module")
def student(tmp_path_factory, corpus, finished):
    """A workdir in which a student has been trained."""
    workdir = tmp_path_factory.mktemp("student") / "run"
    workdir.mkdir()
    for name in ("curated", "tokenizer", "tokens"):
        shutil.copytree(finished / name, workdir / name)
    result = launch("train", *taught(workdir, corpus, finished))
    assert result.returncode == 0, result.stderr
    return workdir


def teacher_at(folder):
    return find_teacher("objective.distill.teacher", str(folder), "bfloat16")


def rows_of(workdir, name):
    lines = [json.loads(line) for line in (workdir / "train" / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def arrays_of(workdir):
    return read_json(workdir / "train" / "checkpoints" / "24" / "manifest.json")["arrays"]


def test_a_student_comes_nearer_to_its_teacher(student, finished):
    for name in ("distill_loss", "distill_features", "distill_maps", "distill_values"):
        apart = rows_of(student, name)
        assert 0 < apart[-1] < apart[0], name
    assert rows_of(student, "heldout_bits_per_byte")
    spec = read_json(student / "train" / "manifest.json")["spec"]
    assert spec["teacher"]["weights"] == teacher_at(finished).weights
    own = [name for name in arrays_of(student) if name.startswith("params/") and "layers" not in name]
    assert own == ["params/embedding", "params/final_norm/scale"]  # none of the teacher


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(student, corpus, finished, tmp_path):
    shutil.copytree(student, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "train" / "checkpoints" / "24")
    result = launch("train", *taught(tmp_path / "run", corpus, finished))
    assert "from step 20" in result.stderr, result.stderr
    assert arrays_of(tmp_path / "run") == arrays_of(student)


def test_an_export_needs_no_teacher_and_has_the_students_parameters_alone(student, corpus, tmp_path):
    shutil.copytree(student, tmp_path / "run")
    result = launch("export", *taught(tmp_path / "run", corpus, tmp_path / "gone"))
    assert result.returncode == 0, result.stderr
    config = read_config(tmp_path / "run" / "export")
    assert read_params(tmp_path / "run" / "export", config).keys() == transformer.abstract(config).keys()
    shutil.rmtree(tmp_path / "run" / "train" / "checkpoints" / "24")
    result = launch("train", *taught(tmp_path / "run", corpus, tmp_path / "gone"))
    assert result.returncode == 2
    assert "is gone, and the run cannot go on without its teacher" in result.stderr


def test_a_run_that_has_begun_refuses_another_teacher(student, corpus):
    result = launch("train", *taught(student, corpus, student))
    assert result.returncode == 2
    assert "was made from something else (teacher." in result.stderr


def test_what_is_no_teacher_is_refused(tmp_path):
    (tmp_path / "begun" / "train").mkdir(parents=True)
    (tmp_path / "begun" / "train" / "manifest.json").write_text('{"spec": {}, "complete": false}')
    for folder, message in (
        ("", "config objective.distill.teacher is empty; name the workdir of a run"),
        (
            tmp_path / "nothing",
            "does not exist; name the workdir of a run that trained or imported, or a Hugging Face",
        ),
        (tmp_path, r"is no teacher \(no train/, no import/, no config.json\); name the workdir of a run"),
        (tmp_path / "begun", "train is not finished"),
    ):
        with pytest.raises(UserError, match=message):
            teacher_at(folder)


def test_a_teacher_with_another_tokenizer_is_refused_before_anything_is_made(finished, student, corpus, tmp_path):
    """Two ids exchanged in a folder's tokenizer; its own, though in another file than the run's, is the same."""
    other = shutil.copytree(finished / "export", tmp_path / "other")
    require_same_tokenizer(teacher_at(other), finished)
    path = other / "tokenizer.json"
    for before, after in {"0x41": "0x??", "0x42": "0x41", "0x??": "0x42"}.items():
        path.write_text(path.read_text().replace(f"<{before}>", f"<{after}>"))
    for name in ("curated", "tokenizer", "tokens"):
        shutil.copytree(student / name, tmp_path / "run" / name)
    result = launch("train", *taught(tmp_path / "run", corpus, other))
    assert result.returncode == 2
    assert "so its distributions are over other tokens; give both one tokenizer" in result.stderr
    assert not (tmp_path / "run" / "train").exists()


def test_rows_longer_than_a_teacher_reads_are_refused():
    with pytest.raises(UserError, match=r"batch.row_length=16 is more than the 8 tokens that the teacher .* reads"):
        make_run("forward", teacher=Teacher(Path("t"), 0, TEACHER, positions=8))


def test_a_run_what_was_exported_of_it_and_what_imported_that_are_one_teacher(finished, corpus, tmp_path):
    source = (f"--config.start.folder={finished / 'export'}", f"--config.data.path={corpus}")
    result = launch("import", f"--config={ROOT / 'experiments' / 'continual.py'}", f"--workdir={tmp_path}", *source)
    assert result.returncode == 0, result.stderr
    run, folder, imported = found = [teacher_at(one) for one in (finished, finished / "export", tmp_path)]
    assert (run.step, folder.step, imported.step) == (24, None, 0)
    assert run.model == folder.model == imported.model
    assert run.positions == folder.positions == imported.positions == 64
    assert run.weights == imported.weights
    loaded = [load_teacher(one, layout(one, make_mesh(), MeshConfig())) for one in found]
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("bfloat16")}
    jax.tree.map(np.testing.assert_array_equal, *loaded[:2])
    jax.tree.map(np.testing.assert_array_equal, *loaded[1:])


def test_a_folder_lies_on_a_mesh_as_a_checkpoint_does(finished):
    script = f"""
    import jax
    import numpy as np
    from train.config import MeshConfig
    from train.sharding import make_mesh
    from train.teacher import find_teacher, layout, load_teacher

    config, loaded = MeshConfig(fsdp=2, tensor=2), []
    for name in ({str(finished)!r}, {str(finished / "export")!r}):
        teacher = find_teacher("teach.teacher", name, "float32")
        loaded.append(load_teacher(teacher, layout(teacher, make_mesh(config), config)))
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, other: one.sharding == other.sharding, *loaded)))
    print("split:", not loaded[1]["embedding"].is_fully_replicated)
    """
    assert "split: True" in on_devices(4, script)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (
            {"features": FeaturesConfig(1.0, ((3, 1),))},
            "features.layers pairs 3 with 1, and the model has the layers 1 to 2",
        ),
        ({"attention": AttentionConfig(1.0, layers=((0, 1),))}, "attention.layers pairs 0 with 1, and the model"),
        (
            {"attention": AttentionConfig(1.0, layers=((1, 4),))},
            "pairs 1 with 4, and the teacher has the layers 1 to 3",
        ),
    ],
)
def test_a_layer_that_is_not_there_is_refused(signal, message):
    with pytest.raises(UserError, match=message):
        make_run("forward", objective=ObjectiveConfig(distill=DistillConfig(teacher="t", **signal)))
