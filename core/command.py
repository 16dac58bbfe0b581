"""The command line: its flags, its help, and the overrides `--config.a.b=value`."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from core.errors import UserError, suggest

DESCRIPTION = """\
Quintet pretrains language models, from raw documents to an evaluated model.

Without a verb the whole recipe runs: train-classifier (where the config has documents for it), curate, tokenize,
import (where it begins with a model), teach (where it learns from stored targets), train, eval, report, export. Each
stage writes into its own folder of the workdir. Run the same command again at any time: finished stages are skipped,
an interrupted one continues, and one made from another config is refused.
"""
EXAMPLES = """\
verbs:
{verbs}

examples:
  python launch.py
      the quickstart, into runs/quickstart
  python launch.py --config.data.path=~/books --workdir=runs/books
      the same on your own .txt, .md, .html, .jsonl(.gz, .zst) and .parquet files
  python launch.py --config.train.steps=3000 --workdir=runs/longer
      one key changed, in a workdir of its own
  python launch.py train
      one stage alone; those before it must be finished
  python launch.py generate --workdir=runs/quickstart --prompt="def main(" --max-tokens=200
      text from the newest checkpoint; --chat converses with it
  python launch.py serve --workdir=runs/quickstart
      the same over HTTP, for clients of OpenAI's API
  python launch.py inspect-data --config=experiments/stages.py
      mixture, shuffle, padding and epochs of a run, as a page, before it begins
  python launch.py plan --config=experiments/smollm3_3b.py --topology=v5e:16x16
      does it fit, how long is a step, what does the run cost; made on this machine
  python launch.py compare --config=experiments/optimizer_race.py
      which optimiser ends lowest, and whether that is more than chance
  python launch.py explain --workdir=runs/quickstart --step=1000
      the documents of a step, with the loss of each
  srun python launch.py train --config=experiments/smollm3_128k.py
      all tasks of a Slurm step train as one; the same under mpirun, or on every host of a TPU slice
  python launch.py train --amend --config.train.steps=3000
      a run goes on under another mixture, length or added documents; its history records from where

exit codes: 0 finished; 2 something to mend, said in one line; 130 Ctrl-C and 143 SIGTERM, after saving.
"""

Flags = tuple[tuple[str, dict], ...]


def parse(argv: list[str], verbs: Mapping[str, str], default_config: Path) -> argparse.Namespace:
    """What was asked; overrides are kept, in order, as `overrides`."""
    parser = _parser(verbs, default_config)
    # Overrides are taken out first: argparse reads an unknown option with a space in its value as a verb.
    overrides = [item for item in argv if item.startswith("--config.")]
    try:
        arguments, rest = parser.parse_known_args([item for item in argv if item not in overrides])
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see --help") from error
    rest += [item for item in overrides if "=" not in item]
    if rest:
        raise UserError(f"unknown argument {rest[0]}; config keys are given as --config.a.b=value, see --help")
    if arguments.verb is not None and arguments.verb not in verbs:
        raise UserError(f"unknown verb {arguments.verb}{suggest(arguments.verb, verbs)}")
    pairs = (item.removeprefix("--config.").partition("=") for item in overrides)
    arguments.overrides = {key: value for key, _, value in pairs}
    return arguments


def _parser(verbs: Mapping[str, str], default_config: Path) -> argparse.ArgumentParser:
    """All flags, under the verb that reads them."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES.format(verbs="\n".join(f"  {name:<17} {what}" for name, what in verbs.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python launch.py [VERB] [--config=FILE] [--workdir=DIR] [--config.KEY=VALUE ...] [options]",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help="one of those below; without it, the whole recipe")
    parser.add_argument("--config", default=str(default_config), metavar="FILE", help="the experiment")
    parser.add_argument("--workdir", metavar="DIR", help="where everything goes (default: runs/<config's name>)")
    parser.add_argument("--rebuild", action="store_true", help="set stale stages aside and make them anew")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, options in flags:
            group.add_argument(name, **options)
    return parser


def _steps(text: str) -> tuple[int, int]:
    """A:B as a pair with 1 <= A <= B."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with whole numbers 1 <= A <= B")
    return int(first), int(last)


def _natural(text: str) -> int:
    """A whole number of 31 bits."""
    if not (text.isdecimal() and int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {(1 << 31) - 1:,}")
    return int(text)


def _count(text: str) -> int:
    """A positive whole number."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


FLAGS: dict[str, Flags] = {
    "train": (
        (
            "--amend",
            {"action": "store_true", "help": "what the config now says of batch and data holds from here on"},
        ),
        (
            "--skip",
            {"type": _steps, "metavar": "A:B", "help": "go back before step A, leave out the data of steps A to B"},
        ),
    ),
    "several processes": (
        (
            "--cluster",
            {
                "default": "auto",
                "choices": ["auto", "none", "slurm", "mpi", "tpu"],
                "help": "who says that several processes train as one (auto); none: this one is alone",
            },
        ),
        ("--coordinator", {"metavar": "HOST:PORT", "help": "of process 0 of those; PORT + 1 is used too"}),
        ("--processes", {"type": _count, "metavar": "N", "help": "how many these are, where no launcher says it"}),
        ("--process", {"type": _natural, "metavar": "I", "help": "which of them this is, 0 to N-1"}),
    ),
    "plan": (
        ("--topology", {"metavar": "KIND:SHAPE", "help": "such as v5e:16x16, v5p:4x4x4, h100:64"}),
        ("--slices", {"type": _count, "default": 1, "metavar": "N", "help": "of a TPU, joined by network (1)"}),
        ("--stage", {"type": _count, "metavar": "N", "help": "of batch.stages, from 1 (the most tokens)"}),
        ("--search", {"action": "store_true", "help": "try meshes, microbatches and remat policies"}),
    ),
    "explain": (
        ("--step", {"type": int, "metavar": "K", "help": "a step, past or planned"}),
        ("--document", {"metavar": "ID", "help": "a document by its id"}),
        ("--checkpoint", {"type": int, "metavar": "K", "help": "whose loss (the last before the step)"}),
    ),
    "generate": (
        ("--prompt", {"metavar": "TEXT", "help": "the text to continue; - reads standard input"}),
        ("--suffix", {"metavar": "TEXT", "help": "what comes after; the middle is written, if the model learnt to"}),
        ("--chat", {"action": "store_true", "help": "the prompt is a turn; without one, converse"}),
        ("--system", {"default": "", "metavar": "TEXT", "help": "with --chat: the system message"}),
        ("--max-tokens", {"type": _count, "metavar": "N", "help": "at most (128; chat: all that fit)"}),
        (
            "--stop",
            {"action": "append", "default": [], "metavar": "TEXT", "help": "end before this text; repeatable"},
        ),
        ("--seed", {"type": _natural, "default": 0, "metavar": "N", "help": "of the sampling (0)"}),
    ),
    "serve": (
        ("--host", {"default": "127.0.0.1", "metavar": "NAME", "help": "where to listen (127.0.0.1)"}),
        ("--port", {"type": int, "default": 8000, "metavar": "N", "help": "where (8000; 0: any free)"}),
    ),
}
