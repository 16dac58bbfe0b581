"""SmolLM3-3B's training step on 256 chips of v5e beside MaxText's: both compiled here, summed by the same reader.

    python benchmarks/pod_step.py --maxtext=DIR --maxtext-python=FILE

DIR is a checkout of MaxText, FILE an interpreter with what its `train_compile` imports, among it the libtpu that is
here. Ours is `launch.py plan`, theirs `train_compile` for the same shape, 2 rows of 4,096 a chip; each `--way` is a
row of the table. XLA dumps the optimised program of either. Seconds are XLA's estimates of cycles times the trips of
loops; kernels of the loss and exposed collectives are charged as `launch.py plan` does it, attention's are left out.
Nothing is run. One compile follows the other: each takes minutes and gigabytes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.progress import say
from model.config import ModelConfig
from model.presets import preset
from scaling.chips import parse_topology
from scaling.compiled import dumped, needed, read_text
from scaling.hlo import Program, executed, parse
from scaling.step_time import kernel_name, step_time
from scaling.topology import HOST

REPOSITORY = Path(__file__).resolve().parent.parent
TOPOLOGY, THEIR_NAME = "v5e:16x16", "v5e-256"
EXPERIMENT, MODEL = "experiments/smollm3_3b.py", "smollm3-3b"
CONFIG = "src/maxtext/configs/base.yml"
ROWS, LENGTH = 2, 4096  # a chip; tokens a row
WAYS = (
    "remat_policy=full",
    "remat_policy=save_dot_except_mlpwi",  # every product's result but the feed-forward layer's two wide ones
    # All of them and attention's output; with both rows at once they would be 18.4 GB.
    "remat_policy=minimal_with_context per_device_batch_size=1 gradient_accumulation_steps=2 "
    "ici_data_parallelism=8 ici_fsdp_parallelism=32 allow_split_physical_axes=true",
)


class Compiled(NamedTuple):
    """One program, or what it would need."""

    way: str
    seconds: float  # to trace and compile
    text: str  # empty where it does not fit
    arguments: float  # bytes of one device
    temporaries: float
    needs: float | None  # bytes, where it does not fit


def quintet(folder: Path) -> Compiled:
    """Ours, by the verb that a user has."""
    verb = ["launch.py", "plan", f"--config={EXPERIMENT}", f"--topology={TOPOLOGY}", f"--workdir={folder}"]
    began = time.monotonic()
    subprocess.run([sys.executable, *verb], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    memory = json.loads((folder / "plan" / "plan.json").read_text())["memory"]
    (program,) = (folder / "plan" / "compiled").glob("*.hlo.txt.gz")
    return Compiled(EXPERIMENT, seconds, read_text(program), memory["arguments"], memory["temporaries"], None)


def their_settings(model: ModelConfig) -> dict[str, object]:
    """What MaxText calls this shape; all layers rotate, since its decoder of Llama has none that do not."""
    return {
        "run_name": "pod_step",
        "decoder_block": "llama2",
        "base_emb_dim": model.d_model,
        "base_num_decoder_layers": model.num_layers,
        "base_num_query_heads": model.num_heads,
        "base_num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "base_mlp_dim": model.d_ff,
        "mlp_activations": '["silu","linear"]',
        "vocab_size": model.vocab_size,
        "logits_via_embedding": "true",
        "enable_dropout": "false",
        "max_target_length": LENGTH,
        "per_device_batch_size": ROWS,
        "compile_topology": THEIR_NAME,
        "compile_topology_num_slices": 1,
        "ici_fsdp_parallelism": -1,  # all devices that other axes leave
        "attention": "flash",
        "dataset_type": "synthetic",
        "enable_checkpointing": "false",
    }


def maxtext(way: str, checkout: Path, python: Path, folder: Path) -> Compiled:
    """Theirs under the settings of `way`, by their own program; it prints what the compiler says of memory."""
    dump = folder / "dump"
    settings = their_settings(preset(MODEL)) | {"base_output_directory": folder}
    settings |= dict(item.split("=", 1) for item in way.split() if not item.startswith("--"))
    flags = [f"--xla_dump_to={dump}", "--xla_dump_hlo_as_text=True"]
    settings["compile_xla_flags"] = " ".join(flags + [item for item in way.split() if item.startswith("--")])
    command = [str(python), "-m", "maxtext.trainers.pre_train.train_compile", str(checkout / CONFIG)]
    command += [f"{name}={value}" for name, value in settings.items()]
    # Without Google Cloud's packages; nothing of ours on its path.
    own = {"PYTHONPATH": str(checkout / "src"), "DECOUPLE_GCLOUD": "TRUE", "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **HOST, **own}, cwd=folder, capture_output=True, text=True)
    seconds, said = time.monotonic() - began, done.stdout + done.stderr
    if done.returncode:
        if (wanted := needed(said)) is None:
            sys.exit(f"MaxText's train_compile fails with {way}:\n{said[-4000:]}")
        return Compiled(way, seconds, "", 0, 0, wanted)
    sizes = [int(re.search(rf"\b{kind}_size_in_bytes=(\d+)", said)[1]) for kind in ("argument", "temp")]
    return Compiled(way, seconds, dumped(dump)[0], *sizes, None)


def kernel_calls(program: Program) -> dict[str, tuple[int, float]]:
    """Kernels by name: how often a step calls each, and bytes that it reads and writes in all."""
    found: dict[str, tuple[int, float]] = {}
    sizes = {(name, one.name): one.bytes for name, body in program.computations.items() for one in body}
    for run in executed(program):
        own = run.instruction
        if own.target == "tpu_custom_call" and not own.cycles:
            moved = own.bytes + sum(sizes.get((run.computation, operand), 0) for operand in own.operands)
            times, total = found.get(name := kernel_name(own), (0, 0.0))
            found[name] = times + run.times, total + moved * run.times
    return found


def row(system: str, one: Compiled) -> str:
    """A line of the table."""
    shown = [system, one.way]
    if one.needs is not None:
        shown += [f"needs {one.needs / 1e9:.1f} in all, does not fit", *("" for _ in range(6)), f"{one.seconds:.0f}"]
        return "| " + " | ".join(shown) + " |"
    topology = parse_topology(TOPOLOGY)
    text = one.text.replace("splash_mha", "attention_mha")  # theirs: left out, as ours is
    times = step_time(text, topology, preset(MODEL), ROWS * LENGTH * topology.devices, LENGTH)
    shown += [f"{size / 1e9:.1f}" for size in (one.temporaries, one.arguments)]
    parts = times.outside_attention, times.compute, sum(times.kernels.values()), times.exposed, times.hidden
    return "| " + " | ".join([*shown, *(f"{seconds:.3f}" for seconds in parts), f"{one.seconds:.0f}"]) + " |"


def kernels(system: str, one: Compiled) -> str:
    """What a row leaves out or charges by FLOPs, with the time that its bytes alone would take."""
    bandwidth = parse_topology(TOPOLOGY).chip.bandwidth
    calls = kernel_calls(parse(one.text)).items()
    told = (f"{name} {count} times, {1000 * moved / bandwidth:.1f} ms" for name, (count, moved) in calls)
    return f"{system}, {one.way}: {'; '.join(told)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", type=Path, required=True, metavar="DIR", help="a checkout of MaxText")
    parser.add_argument(
        "--maxtext-python", type=Path, required=True, metavar="FILE", help="an interpreter with its packages"
    )
    parser.add_argument("--way", action="append", help="settings of MaxText and flags of XLA")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the programs' texts stay")
    arguments = parser.parse_args()
    checkout, python = arguments.maxtext.absolute(), arguments.maxtext_python.absolute()
    if not (checkout / CONFIG).is_file():
        parser.error(f"--maxtext={arguments.maxtext} is no checkout of MaxText: it has no {CONFIG}")
    if not python.is_file():
        parser.error(f"--maxtext-python={arguments.maxtext_python} is no interpreter")
    print("| system | settings | temporaries, GB | arguments, GB | outside attention, s | compute | kernels ", end="")
    print("| exposed collectives | hidden collectives, s | compiled in, s |\n" + "|---" * 10 + "|", flush=True)
    notes = []
    for number, way in enumerate([None, *(arguments.way or WAYS)]):
        system = "MaxText" if way else "Quintet"
        say(f"pod_step: compiling {system}, {way or EXPERIMENT}")
        with tempfile.TemporaryDirectory(prefix="pod-step-") as name:
            folder = Path(name)
            one = maxtext(way, checkout, python, folder) if way else quintet(folder)
        print(row(system, one), flush=True)
        notes += [kernels(system, one)] if one.text else []
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{number}-{system.lower()}.hlo.txt").write_text(one.text)
    print(
        "\nKernels, and the time of the bytes that they read and write:\n\n"
        + "\n".join(f"- {note}" for note in notes)
    )


if __name__ == "__main__":
    main()
