"""The trust card of the kernels: writes docs/kernels.md from what it measures here, without a TPU or GPU.

    python benchmarks/kernel_card.py [--chips=v5e,v6e] [--output=docs/kernels.md]

Errors of every implementation against float64, beside libraries; and every kernel through the TPU's own compiler, for
every chip. Takes about half an hour on two cores.
"""

import argparse
import datetime
import sys
from pathlib import Path

import jax
import kernel_compiles
import kernel_errors

from core.progress import say
from kernels.attention import api as attention
from kernels.cross_entropy import api as cross_entropy
from kernels.newton_schulz import api as newton_schulz
from kernels.rope import api as rope
from scaling import bundles
from scaling.topology import CHIPS

OPS = {"attention": attention, "cross_entropy": cross_entropy, "rope": rope, "newton_schulz": newton_schulz}
PLATFORMS = ("reference", "xla", "tpu", "gpu")

TEXT = """# Kernels: the trust card

    make kernel-card

Made {date} on a CPU (jax {jax}); nothing here was run on a TPU or a GPU.

Every op is a folder of `kernels/`: `api.py` (the public function), `reference.py` (plain, float32), `xla.py`
(blocked, for any platform), `tpu.py` and `gpu.py`. The platform's kernel runs unless the config says otherwise,
and the log says which:

    attention: implementation 'tpu', picked for TPU v5 lite

`--config.model.kernels.attention=xla` takes another one, also within a run; the keys are `attention`,
`cross_entropy` and `rope`. What a kernel cannot take (float16, say) goes to `xla` with a warning, or is refused
where the kernel was asked for. `tpu_interpret` and `gpu_interpret` are the kernels step by step on any
platform, slowly. Decoding reads its cache by XLA alone (`kernels/attention/cached.py`), and Newton-Schulz is
asked for by the optimiser.

{implementations}

## Errors

Errors are `|got - exact| / |exact|` over whole arrays, the largest of the results named; the exact ones are the
reference's in float64 from the same rounded inputs. TPU and GPU kernels are interpreted. Libraries stand below
ours, in the same run. Splash attention multiplies its probabilities in float32; the interpreter does so
exactly, a TPU's matrix unit from operands rounded to bfloat16, which is what "as on a TPU" does. cuDNN's errors
need a GPU: `make bench-gpu` prints them. Every row gave the same bits twice{unequal}.

{errors}

## The TPU's compiler

Each op forward and backward at SmolLM3-3B's shapes, one row of 4,096 tokens, bfloat16 (Newton-Schulz: two
matrices of 2,048 x 11,008): the least VMEM, of 16, 32, 64 or 128 MiB, within which all its kernels compile, of what
a core has.

{vmem}

Bundles of instructions, about a cycle each, of every stretch of a kernel that multiplies matrices, or of all of
a kernel that multiplies none, in the compiler's final schedule. Attention's first number is of a step without a
mask, its second with one.

{bundles}

All shapes of the presets: `make test-slow` compiles them for all five chips (`tests/kernels/*tpu*_test.py`), the loss
of 8,192 tokens within a tenth of the memory of one that writes its logits (Llama 2 7B on a v4 8.5%, SmolLM2-360M on a
v5e 5.2%, 3% and less for 128k tokens of vocabulary).

## More

- [benchmarks/attention.md](benchmarks/attention.md): steps, bytes and products beside splash attention; what the
  largest logit costs; block sizes.
- [benchmarks/rope.md](benchmarks/rope.md), [benchmarks/newton_schulz.md](benchmarks/newton_schulz.md): the same for
  these.
- [benchmarks/cpu.md](benchmarks/cpu.md): times on a CPU. [benchmarks/gpu.md](benchmarks/gpu.md): the GPU's page.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])


def implementations() -> str:
    rows = []
    for op, api in OPS.items():
        found = {name: api.IMPLEMENTATIONS[name] for name in PLATFORMS}
        rows.append([op, *("xla" if name == "gpu" and run is found["xla"] else "yes" for name, run in found.items())])
    return table(["op", *PLATFORMS], rows)


def errors() -> tuple[str, str]:
    """The table, and what did not repeat."""
    found = []
    for row in kernel_errors.rows():
        found.append(row)
        say(f"{row.op}, {row.what}, {row.dtype}, {row.by}: {row.forward:.1e}")
    shown = []
    for r in found:
        numbers = ("" if e is None else f"{e:.1e}" for e in (r.forward, r.residuals, r.gradients))
        shown.append([r.op, r.what, r.dtype, r.by, *numbers])
    unequal = sorted({f"{r.op} by {r.by}" for r in found if not r.repeats})
    head = ["op", "case", "dtype", "by", "forward", "residuals", "gradients"]
    return table(head, shown), f" but {', '.join(unequal)}" if unequal else ""


def compiler(folder: Path, chips: list[str]) -> tuple[str, str]:
    """VMEM by op and chip, bundles by kernel and chip."""
    vmem: dict[str, dict[str, str]] = {}
    schedules: dict[str, dict[str, str]] = {}
    for found in kernel_compiles.compiled(folder, chips):
        say(f"{found.op} for {found.chip}: {found.vmem} MiB")
        vmem.setdefault(found.op, {})[found.chip] = "does not" if found.vmem is None else f"{found.vmem}"
        for kernel, schedule in found.kernels.items():
            counted = ", ".join(f"{n:,}" for n in schedule.products or (schedule.total,))
            schedules.setdefault(kernel, {})[found.chip] = counted
    head = [f"{chip}, of {kernel_compiles.vmem(chip)}" for chip in chips]
    tables = []
    for top, rows in ((["op", *head], vmem), (["kernel", *chips], schedules)):
        tables.append(table(top, [[name, *(row.get(chip, "") for chip in chips)] for name, row in rows.items()]))
    return tables[0], tables[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--output", type=Path, default=Path("docs/kernels.md"))
    options = parser.parse_args()
    folder = bundles.listen()
    jax.config.update("jax_enable_compilation_cache", False)
    measured, unequal = errors()
    vmem, schedules = compiler(folder, options.chips.split(","))
    page = TEXT.format(
        date=datetime.date.today(), jax=jax.__version__, implementations=implementations(), errors=measured,
        unequal=unequal, vmem=vmem, bundles=schedules,
    )  # fmt: skip
    options.output.write_text(page)
    say(f"wrote {options.output}")


if __name__ == "__main__":
    sys.exit(main())
