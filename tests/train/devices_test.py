"""One device and four give the same run: a process of its own, with four virtual CPU devices."""

from pathlib import Path

from lab import on_devices

SCRIPT = """
import sys
import jax, numpy as np
sys.path.insert(0, {tests!r})
from step_test import RUN, make_batch
from train.checkpoint import Checkpoints
from train.run import make_program
from train.sharding import make_mesh
from pathlib import Path

assert jax.device_count() == 4

def run(devices, steps, state=None):
    program = make_program(RUN, make_mesh(devices=jax.devices()[:devices]))
    state = program.init() if state is None else state
    losses = []
    for seed in range(steps):
        state, metrics = program.step(state, make_batch(seed))
        losses.append(float(metrics["loss"]))
    return program, state, losses

_, _, one = run(1, 6)
program, state, four = run(4, 6)
np.testing.assert_allclose(one, four, rtol=1e-5)
query = state.params["layers"]["attention"]["query"]
assert query.sharding.shard_shape(query.shape) == (2, 8, 2, 16), query.sharding  # 32 / 4 of the model axis
moment = state.opt_state.inner[1].inner_states["adamw"].inner_state.mu["embedding"]
assert moment.sharding.shard_shape(moment.shape) == (16, 32)

writer = Checkpoints(Path({folder!r}), keep_last=1)
writer.save(state, 6, {{}})
writer.close()
program, _, _ = run(1, 1)
restored = Checkpoints(Path({folder!r})).restore(program.abstract, program.shardings, 6)
for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored)):
    np.testing.assert_array_equal(a, b)
print("four devices agree with one")
"""


def test_four_devices_train_as_one(tmp_path):
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "checkpoints"))
    assert "four devices agree with one" in on_devices(4, script)
