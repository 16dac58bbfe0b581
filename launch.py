"""Starts anything: `python launch.py [VERB] --config=FILE --workdir=DIR [--config.a.b=VALUE ...]`.

Verbs, flags and the mapping from config to rooms; no logic of its own. Imports are lazy, so that --help is quick.
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.clusters import Cluster

VERBS = {
    "train-classifier": "a judge of quality from labelled documents (--config.classifier), into classifier/",
    "curate": "documents from the source, through the recipe, into curated/",
    "tokenize": "learn the tokenizer, encode every document, into tokenizer/ and tokens/",
    "import": "the parameters of --config.start.folder, a Hugging Face model, into import/",
    "teach": "what --config.teach.teacher predicts at every training token, a few ids of each, into targets/",
    "train": "train the model, or continue, into train/",
    "eval": "held-out bits per byte beside zlib and xz, and samples, into eval/",
    "report": "report.html and loss.png, into report/",
    "export": "a folder that Hugging Face transformers loads, into export/",
    "export-data": "the curated documents as folders that datasets and TFDS load, into export-data/",
    "generate": "continue --prompt with the newest checkpoint, or --chat with it, to standard output",
    "serve": "the newest checkpoint as an OpenAI-compatible endpoint on this machine",
    "inspect-data": "what the run will read: mixture, order, padding, epochs, into inspect-data/",
    "inspect-tokenizer": "a grown tokenizer beside the one it grew from, into inspect-tokenizer/",
    "plan": "memory, step time and cost on --topology, compiled without any chip, into plan/",
    "compare": "variants of one run, tuned alike and trained on the same seeds, with a verdict, into compare/",
    "explain": "the documents of --step with their loss, or the steps of --document, to standard output",
}
RECIPE = ("train-classifier", "curate", "tokenize", "import", "teach", "train", "eval", "report", "export")

# Which room turns which subtree of the config into which dataclass.
PARTS = {
    "data": ("data.config", "DataConfig"),
    "classifier": ("data.config", "ClassifierConfig"),
    "tokenizer": ("data.config", "TokenizerConfig"),
    "batch": ("data.config", "BatchConfig"),
    "model": ("model.config", "ModelConfig"),
    "objective": ("objectives.config", "ObjectiveConfig"),
    "optim": ("optim.config", "OptimConfig"),
    "train": ("train.config", "TrainConfig"),
    "mesh": ("train.config", "MeshConfig"),
    "start": ("train.config", "StartConfig"),
    "teach": ("train.config", "TeachConfig"),
    "eval": ("evals.config", "EvalConfig"),
    "export": ("train.config", "ExportConfig"),
    "compare": ("scaling.config", "CompareConfig"),
}

QUICKSTART = Path(__file__).resolve().parent / "experiments" / "quickstart.py"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; what a user can cause becomes one line and an exit code."""
    from core.errors import Stopped, explain

    argv = sys.argv[1:] if argv is None else argv
    try:
        run(parse_arguments(argv))
        return 0
    except (Exception, KeyboardInterrupt, Stopped) as error:
        explained = explain(error)
        if explained is None or "--debug" in argv:
            raise
        print(f"launch.py: {explained.line}", file=sys.stderr)  # noqa: T201
        return explained.exit_code


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Flags; the overrides `--config.a.b=value` are kept, in order, as `overrides`."""
    from core.command import parse

    return parse(argv, VERBS, default_config=QUICKSTART)


def run(arguments: argparse.Namespace) -> None:
    """Runs one verb, or the recipe."""
    from core.errors import UserError, raise_on_sigterm

    raise_on_sigterm()
    cluster = find_cluster(arguments)
    initialise_platform(alone=cluster is not None and cluster.kind == "tpu" and arguments.verb not in (None, "train"))
    for flag in ("amend", "skip"):
        if getattr(arguments, flag) and arguments.verb not in (None, "train"):
            raise UserError(f"--{flag} changes the history of a run and belongs to train, not to {arguments.verb}")
    with cluster.naming() if cluster else contextlib.nullcontext():
        experiment = open_experiment(arguments)
        verbs = [arguments.verb] if arguments.verb else experiment.recipe
        if "train" in verbs:
            experiment.require_trainable(alone=cluster is None)
        if cluster is None:
            experiment.run(*verbs)
        else:
            from train import hosts

            config = experiment.parts["train"]
            hosts.run(cluster, hosts.Patience(config.stuck_seconds, config.silent_seconds), verbs, experiment.run)


def find_cluster(arguments: argparse.Namespace) -> "Cluster | None":
    """The other processes of this run, by flags or by what started this one."""
    from core.progress import say
    from train import clusters

    given = arguments.coordinator, arguments.processes, arguments.process
    cluster = clusters.find(arguments.cluster, os.environ, *given)
    if cluster is None and arguments.cluster == "auto" and arguments.verb in (None, "train"):
        for hint in clusters.hints(os.environ):
            say(hint)
    return cluster


def open_experiment(arguments: argparse.Namespace) -> "Experiment":
    """The config with its overrides, every part checked before anything runs."""
    from core.config import load_experiment, parse_parts

    tree = load_experiment(Path(arguments.config), arguments.overrides, groups=PARTS)
    workdir = Path(arguments.workdir or f"runs/{Path(arguments.config).stem}").expanduser()
    if "start" in tree:
        from train.start import fill_in

        tree = fill_in(tree, workdir)
    classes = {name: getattr(importlib.import_module(room), cls) for name, (room, cls) in PARTS.items()}
    return Experiment(workdir, arguments, parse_parts(classes, tree))


def initialise_platform(alone: bool = False) -> None:
    """Settings that must stand before JAX is imported.

    `alone`, one process of a TPU slice leaves its chips: they start when all hosts of the slice do.
    """
    if alone:
        os.environ["JAX_PLATFORMS"] = "cpu"
    # Where the TPU compiler is installed but no accelerator is present, JAX would wait for a TPU.
    chips = [found for name in ("accel*", "vfio/[0-9]*", "nvidia*", "kfd") for found in glob.glob(f"/dev/{name}")]
    if importlib.util.find_spec("libtpu") and not chips:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Programs that exchange between virtual devices and run at once can take the threads that each other waits for;
    # after 40 s XLA aborts. (With several processes `train/hosts.py: begin` says so of all.)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Hands each verb's function its own parts of the config."""

    workdir: Path
    arguments: argparse.Namespace
    parts: Mapping[str, Any]

    @property
    def stale(self) -> str:
        """What to do with a stage made from something else."""
        return "set_aside" if self.arguments.rebuild else "refuse"

    @property
    def flags(self) -> list[str]:
        """What decides the config and the workdir, as typed."""
        overrides = [f"--config.{key}={value}" for key, value in self.arguments.overrides.items()]
        return [f"--config={self.arguments.config}", f"--workdir={self.workdir}", *overrides]

    @property
    def recipe(self) -> list[str]:
        """The verbs of a run without one: what the config asks for."""
        asked = {"import": self.parts["start"].folder, "train-classifier": self.parts["classifier"].asked}
        asked["teach"] = self.parts["objective"].targets.asked
        return [verb for verb in RECIPE if asked.get(verb, True)]

    @functools.cached_property
    def training(self) -> Any:
        """What training needs, as one record."""
        from train.run import Run
        from train.teacher import teacher_of

        names = ("model", "batch", "objective", "optim", "train", "mesh", "start", "teach", "seed")
        own = {name: self.parts[name] for name in names}
        teacher = teacher_of(self.parts["objective"].distill, self.workdir)
        return Run(**own, added=len(self.parts["data"].added), teacher=teacher)

    def run(self, *verbs: str) -> None:
        """One after the other."""
        for verb in verbs:
            self.require_upstream(verb)
            method = {"import": "import_"}.get(verb, verb.replace("-", "_"))  # a word of the language
            getattr(self, method)()

    def require_trainable(self, alone: bool) -> None:
        """Refuses what could not be trained before anything is made.

        The devices of other processes are not known yet; a run that has begun may have ended on other devices.
        """
        from data.tokenize import special_tokens
        from train.run import require_layout, require_optimizer, require_sentinels

        require_optimizer(self.training)
        infill, tokenizer = self.parts["objective"].fill_in_the_middle, self.parts["tokenizer"]
        if infill.asked:
            where = tokenizer.path or "the tokenizer that config.tokenizer trains"
            require_sentinels(infill, special_tokens(tokenizer, self.workdir), where)
        if alone and not (self.workdir / "train").exists():
            require_layout(self.training)

    def require_upstream(self, verb: str) -> None:
        """Refuses a verb whose input was made by another config than this one."""
        from data.curate.engine import require_curated
        from data.tokenize import require_tokenized
        from train.start import is_only_imported, require_imported

        if verb == "plan":
            return  # needs shapes alone
        before = {"train-classifier": 0, "curate": 0, "tokenize": 1, "export-data": 1}.get(verb, 2)
        if self.parts["start"].folder and not self.parts["tokenizer"].extend_to:
            # A model that was only imported can be looked at without any documents.
            looks = verb in ("generate", "serve", "export") and is_only_imported(self.parts["start"], self.workdir)
            before = 0 if looks or verb == "import" else before
        if before >= 1:
            require_curated(self.parts["data"], self.workdir)
        if before >= 2:
            require_tokenized(self.parts["tokenizer"], self.workdir)
        if verb not in ("train-classifier", "curate", "tokenize", "export-data", "import"):
            require_imported(self.parts["start"], self.workdir)
        if verb == "train" and self.parts["objective"].targets.asked:
            from train.teach import require_same_teacher

            require_same_teacher(self.parts["teach"], self.workdir)

    def train_classifier(self) -> None:
        """Pillar 1, a judge of documents."""
        from data.curate.train_classifier import train_classifier

        train_classifier(self.parts["classifier"], self.parts["data"], self.workdir, stale=self.stale)

    def curate(self) -> None:
        """Pillar 1, the documents."""
        from data.curate.engine import curate

        curate(self.parts["data"], self.workdir, stale=self.stale)

    def tokenize(self) -> None:
        """Pillar 1, the tokens."""
        from data.tokenize import tokenize

        data = self.parts["data"]
        options = {"added": len(data.added), "stale": self.stale, "workers": data.workers}
        tokenize(self.parts["tokenizer"], self.workdir, **options)

    def import_(self) -> None:
        """A model that exists, and its tokenizer."""
        from data.tokenize import take_tokenizer
        from train.start import import_model, needs_no_folder, require_importable

        if not needs_no_folder(self.parts["start"], self.parts["model"], self.workdir):
            require_importable(self.parts["start"], self.parts["model"])
        if not self.parts["tokenizer"].extend_to:
            take_tokenizer(self.parts["tokenizer"], self.workdir, self.stale)
        import_model(self.parts["start"], self.parts["model"], self.workdir, stale=self.stale)

    def teach(self) -> None:
        """Pillar 3, a teacher's distributions."""
        from train.teach import teach

        teach(self.parts["teach"], self.workdir, added=len(self.parts["data"].added), stale=self.stale)

    def train(self) -> None:
        """Brings the pillars together; evaluation inside the loop is handed in from above."""
        from evals.evaluate import quick_evaluation
        from train.loop import Amendment, train

        measure = functools.partial(quick_evaluation, self.parts["eval"], self.training, self.workdir)
        amendment = Amendment(self.arguments.amend, self.arguments.skip)
        train(self.training, self.workdir, make_evaluate=measure, stale=self.stale, amendment=amendment)

    def eval(self) -> None:
        """Judges the newest checkpoint."""
        from evals.evaluate import evaluate

        evaluate(self.parts["eval"], self.training, self.workdir)

    def report(self) -> None:
        """The page that shows what came out."""
        from evals.report import report
        from scaling.here import predict

        command = shlex.join(["python", "launch.py", *self.flags])
        parts = self.parts.items()
        tree = {name: dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for name, part in parts}
        report(tree, self.workdir, command=command, predict=functools.partial(predict, self.training))

    def export(self) -> None:
        """The model for others."""
        from train.export import export

        export(self.parts["export"], self.training, self.workdir)

    def export_data(self) -> None:
        """The documents for others."""
        from data.export import export_data

        export_data(self.parts["data"], self.workdir)

    def plan(self) -> None:
        """What the run would need and take, on devices that are not here."""
        from scaling.verb import plan

        given, name = self.arguments, Path(self.arguments.config).stem
        options = {"slices": given.slices, "stage": given.stage, "search": given.search}
        asked = [f"--topology={given.topology}"] + ([f"--slices={given.slices}"] if given.slices > 1 else [])
        asked += [f"--stage={given.stage}"] * bool(given.stage) + ["--search"] * given.search
        command = shlex.join(["python", "launch.py", "plan", *self.flags, *asked])
        plan(self.training, self.workdir, name, given.topology, **options, command=command)

    def compare(self) -> None:
        """Which of several ways to train ends lower, if any."""
        from scaling.compare import compare

        def make_run(keys: Mapping[str, Any]) -> tuple[Any, Any]:
            overrides = {**self.arguments.overrides, **{key: str(value) for key, value in keys.items()}}
            own = open_experiment(argparse.Namespace(**{**vars(self.arguments), "overrides": overrides}))
            return own.training, own.parts["eval"]

        command = shlex.join(["python", "launch.py", "compare", *self.flags])
        name = Path(self.arguments.config).stem
        compare(self.parts["compare"], make_run, self.workdir, name, command)

    def explain(self) -> None:
        """What a step saw, or which steps saw a document."""
        from evals.explain import explain

        given = self.arguments
        explain(self.training, self.workdir, step=given.step, document=given.document, checkpoint=given.checkpoint)

    def inspect_data(self) -> None:
        """What the run will read, before it begins."""
        from evals.inspect_data import inspect_data

        inspect_data(self.training, self.workdir)

    def inspect_tokenizer(self) -> None:
        """What growing the vocabulary did."""
        from evals.inspect_tokenizer import inspect_tokenizer

        inspect_tokenizer(self.parts["eval"], self.parts["tokenizer"], self.training, self.workdir)

    def generate(self) -> None:
        """Text, to standard output."""
        from evals.terminal import write

        names = ("prompt", "suffix", "chat", "system", "max_tokens", "seed")
        given = {name: getattr(self.arguments, name) for name in names}
        write(self.parts["eval"], self.training, self.workdir, stop=tuple(self.arguments.stop), **given)

    def serve(self) -> None:
        """Text, over HTTP."""
        from evals.serve import serve

        serve(self.parts["eval"], self.training, self.workdir, host=self.arguments.host, port=self.arguments.port)


def with_huge_pages() -> None:
    """Starts this process again with glibc's huge pages, which are chosen at its start.

    XLA:CPU takes its buffers afresh for each step; with pages of 2 MB the quickstart trains 1.2 times as fast.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    with_huge_pages()
    sys.exit(main())
