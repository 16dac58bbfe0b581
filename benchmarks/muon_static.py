"""An optimiser's update alone, compiled for chips that are not here: cycles, kernels, collectives and memory.

    python benchmarks/muon_static.py [--model=smollm3-3b] [--topology=v5e:16x16] [--replica=8] [--coefficients=NAME]

Prints a row for AdamW and one for Muon, with the longest collectives and the largest temporaries. Times are by the
rules of `launch.py plan` (scaling/step_time.py): nothing runs.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import optax

from model import transformer
from model.presets import PRESETS
from optim.build import build
from optim.config import MuonConfig, OptimConfig
from scaling import compiled
from scaling.chips import parse_topology
from scaling.step_time import step_time
from scaling.topology import topology_devices
from train.config import MeshConfig
from train.sharding import make_mesh, on_mesh, state_shardings

GIB = 1 << 30


def main() -> None:
    """Both updates, and the longest collectives of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm3-3b", choices=PRESETS)
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--replica", type=int, default=8)
    parser.add_argument("--coefficients", default="polar_express")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--keep", type=Path, help="a folder for the compiled programs")
    args = parser.parse_args()
    model, topology = dataclasses.replace(PRESETS[args.model], dtype="bfloat16"), parse_topology(args.topology, 1)
    mesh_config = MeshConfig(replica=args.replica)
    mesh = make_mesh(mesh_config, topology_devices(args.topology))
    params = transformer.abstract(model)
    print(
        f"{'optimiser':>10} {'XLA ms':>8} {'kernels ms':>10} {'exposed ms':>10} {'in all ms':>9} {'state GiB':>9} "
        f"{'temporaries GiB':>15}"
    )
    for name in args.optimizers:
        config = OptimConfig(optimizer=name, muon=MuonConfig(coefficients=args.coefficients))
        chain, _ = build(config, 10_000)
        state = jax.eval_shape(chain.init, params)
        layouts = tuple(state_shardings(tree, mesh, mesh_config) for tree in (params, state))

        def update(params, state, grads, chain=chain):  # donated in the order of its results, as XLA pairs them
            updates, state = chain.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(
            on_mesh(update, mesh),
            in_shardings=(*layouts, layouts[0]),
            out_shardings=layouts,
            donate_argnums=(0, 1),
        ).lower(params, state, params)
        result = compiled.compile_lowered(lowered, name)
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{name}.txt").write_text(result.text)
        times = step_time(result.text, topology, model, 1, 4096)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        print(
            f"{name:>10} {times.compute * 1e3:8.2f} {sum(times.kernels.values()) * 1e3:10.2f} "
            f"{times.exposed * 1e3:10.2f} {times.outside_attention * 1e3:9.2f} "
            f"{held / GIB / (mesh.size / args.replica):9.3f} {result.memory.temporaries / GIB:15.3f}"
        )
        for one in (*times.collectives[:10], *times.hidden_collectives[:4]):
            took = f"{one.devices} devices, {one.times} times, {one.seconds * 1e3:.2f} ms"
            print(f"{'':>10} {one.opcode} of {one.shown}, {took}")
        for buffer in result.buffers[:8]:
            print(f"{'':>10} {buffer.bytes / GIB:.3f} GiB {buffer.shape} {buffer.op_name}")


if __name__ == "__main__":
    main()
