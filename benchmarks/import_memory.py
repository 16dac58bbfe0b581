"""Peak memory and time of importing a safetensors folder of a published size.

    python benchmarks/import_memory.py --preset=llama-3.2-1b [--verb] [--folder=DIR]

Writes random bfloat16 weights of the preset's shapes, in files of up to 5 GB as published folders have them, and
reads them with `model.hf.read_params` in a fresh process, or, with --verb, does with them all that `launch.py import`
does: reads, saves a checkpoint with fingerprints, finishes the stage. Peak is what that process held at most (VmHWM)
beyond what it held before (imports, XLA started). Pages of the files themselves are the system's cache, which it can
drop at any time; the reader maps nothing, so they do not count as its memory. The bound: the float32 parameters and
1.3 times the largest stacked leaf.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import ml_dtypes
import numpy as np

from model import hf, transformer
from model.hf_config import read_config, to_hf
from model.presets import preset
from model.safetensors_file import write
from train import start
from train.config import StartConfig

GIB = 1 << 30


def write_folder(folder: Path, preset_name: str) -> int:
    """Random weights under the names and shapes of the preset; returns their bytes."""
    config, rng = preset(preset_name), np.random.default_rng(0)
    described = to_hf(config, max_positions=4096, bos=1, eos=2, dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(described))
    abstract, shapes = transformer.abstract(config), {}
    for tensor in hf.tensors(config):
        shape = functools.reduce(dict.get, tensor.path, abstract).shape
        shapes[tensor.name] = tensor.their_shape(shape if tensor.layer is None else shape[1:])

    def make(name: str) -> np.ndarray:  # 16 random bits with an exponent below that of 1: finite, small numbers
        bits = rng.integers(0, 1 << 16, shapes[name], np.uint16)
        return (bits & np.uint16(0xBFFF)).view(ml_dtypes.bfloat16)

    shards, sizes = [{}], [0]
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if sizes[-1] + size > hf.SHARD_BYTES:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = shape
        sizes[-1] += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / file, shard, "BF16", make)
        weight_map.update(dict.fromkeys(shard, file))
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return sum(sizes)


def memory(field: str) -> int:
    """Bytes of this process: VmHWM is the most it held, VmRSS what it holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def measure(folder: Path, verb: bool) -> dict[str, float]:
    """What reading takes, in this process."""
    config = read_config(folder)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)  # the backend starts
    before, began = memory("VmRSS"), time.perf_counter()
    if verb:
        start.import_model(StartConfig(str(folder)), config, folder / "workdir")
    else:
        jax.block_until_ready(hf.read_params(folder, config))
    seconds = time.perf_counter() - began
    leaves = [4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(transformer.abstract(config))]
    return {
        "before": before, "peak": memory("VmHWM") - before, "seconds": seconds,
        "parameters": sum(leaves), "largest": max(leaves),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder lies")
    parser.add_argument("--verb", action="store_true", help="measure the whole import, its checkpoint included")
    parser.add_argument("--read", type=Path, help="read this folder here and print what it took")
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(measure(arguments.read, arguments.verb)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        size = write_folder(Path(name), arguments.preset)
        command = [sys.executable, __file__, "--read", name, *["--verb"] * arguments.verb]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        found = json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    bound = found["parameters"] + 1.3 * found["largest"]
    print("| preset | file, GB | parameters, GiB | largest leaf, GiB | peak, GiB | bound, GiB ", end="")
    print("| beyond the parameters, leaves | s | MB/s |\n" + "|---" * 9 + "|")
    gib = [f"{found[key] / GIB:.2f}" for key in ("parameters", "largest", "peak")] + [f"{bound / GIB:.2f}"]
    beyond = (found["peak"] - found["parameters"]) / found["largest"]
    rest = [f"{beyond:.2f}", f"{found['seconds']:.1f}", f"{size / found['seconds'] / 1e6:,.0f}"]
    print("| " + " | ".join([arguments.preset, f"{size / 1e9:.2f}", *gib, *rest]) + " |")
    print(f"\nbefore: {found['before'] / GIB:.2f} GiB; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
