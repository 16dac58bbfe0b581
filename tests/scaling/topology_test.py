import dataclasses
import importlib.util

import pytest

from core.errors import UserError
from data.config import BatchConfig
from model.config import ModelConfig
from objectives.config import ObjectiveConfig, TargetsConfig
from optim.config import OptimConfig
from scaling import topology
from train.config import TeachConfig, TrainConfig
from train.run import Run

MODEL = ModelConfig(
    vocab_size=512,
    num_layers=4,
    d_model=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    d_ff=512,
    dtype="bfloat16",
)
RUN = Run(MODEL, BatchConfig(rows=8, row_length=256), OptimConfig(warmup_steps=1), TrainConfig(steps=10), 0)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no libtpu wheel for this platform: the TPU compiler is missing",
)


@needs_libtpu
def test_the_train_step_compiles_for_a_tpu_topology_on_this_host():
    compiled = topology.compile_step(RUN, "v5e:2x2")
    memory = compiled.memory_analysis()
    # float32 parameters and two moments, sharded over 4 chips, plus what every chip holds whole
    state = 3 * 4 * MODEL.num_parameters
    assert state / 4 < memory.argument_size_in_bytes < state / 2
    assert memory.alias_size_in_bytes > 0.9 * state / 4  # the state is donated
    assert "all-gather" in compiled.as_text()


@pytest.mark.slow
@needs_libtpu
def test_an_offloaded_optimizer_leaves_the_chip():
    run = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, offload_optimizer=True))
    memory = topology.compile_step(run, "v5e:2x2").memory_analysis()
    moments = 2 * 4 * MODEL.num_parameters / 4
    assert moments < memory.host_argument_size_in_bytes < 1.4 * moments  # small arrays are padded
    assert memory.argument_size_in_bytes < moments


@needs_libtpu
def test_a_step_that_learns_from_stored_targets_takes_their_ids():
    taught = ObjectiveConfig(targets=TargetsConfig(0.5))
    run = dataclasses.replace(RUN, objective=taught, teach=TeachConfig(tokens=24))
    lowered = topology.lower_step(run, "v5e:2x2")
    _, batch = lowered.args_info[0]
    assert batch.teacher_ids_BTk.shape == batch.teacher_probs_BTk.shape == (8, 256, 24)


@needs_libtpu
def test_unknown_topologies_are_told():
    with pytest.raises(UserError, match="topology v99:2x2 is not known to libtpu"):
        topology.topology_devices("v99:2x2")


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        topology.topology_devices("v5e:2x2")
