"""One run: what it is made from, what it computes, its history, and the parameters that it has reached."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError, suggest
from core.files import MANIFEST, read_json, read_stage, require_spec
from data import history as data_history
from data.config import BatchConfig
from data.corpus import Corpus
from data.history import History
from data.infill import FillInTheMiddle
from data.plan import Plan
from data.repeats import Repeats
from data.shards import TokenShards
from data.targets import TARGETS, Targets, made_by, open_targets, read_targets
from data.tokenize import TOKENS, open_split, open_tokenizer
from model.config import ModelConfig
from objectives.build import Total, require_room, require_teacher
from objectives.build import build as build_objective
from objectives.config import FillInTheMiddleConfig, ObjectiveConfig
from objectives.interface import of_model
from optim.build import build
from optim.config import OptimConfig
from optim.schedule import Steps
from train import hosts, sharding, state
from train.checkpoint import Checkpoints
from train.config import MeshConfig, StartConfig, TeachConfig, TrainConfig
from train.start import imported_params, is_only_imported, start_spec
from train.step import Step, compile_step, make_step
from train.teacher import Teacher, layout, require_reads

VERSION = 3
FOLDER, CHECKPOINTS, HISTORY, DEVICES = "train", "checkpoints", "history.json", "devices.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """What training needs, each part from its own subtree of the config."""

    model: ModelConfig
    batch: BatchConfig
    optim: OptimConfig
    train: TrainConfig
    seed: int
    added: int = 0  # entries of data.added
    start: StartConfig = dataclasses.field(default_factory=StartConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    teacher: Teacher | None = None  # that objective.distill names
    teach: TeachConfig = dataclasses.field(default_factory=TeachConfig)

    def __post_init__(self):
        if bool(self.batch.stages) == bool(self.train.steps):
            either = "both say how long" if self.train.steps else "both leave open how long"
            raise UserError(f"config train.steps and batch.stages {either} to train; give one of them")
        lengths = [stage.row_length for stage in self.batch.plan(self.train.steps)]
        require_room(self.model, self.objective, min(lengths))
        if self.teacher is not None:
            require_teacher(self.model, self.objective, self.teacher.model)
            require_reads(self.teacher, "batch.row_length", max(lengths))

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.batch.plan(self.train.steps))

    @property
    def learns(self) -> Total:
        """What is minimised."""
        teacher = self.teacher and self.teacher.model
        return build_objective(self.model, self.objective, self.steps, teacher, self.teach.temperature)

    def flops_per_token(self, row_length: int) -> float:
        """Training FLOPs a token, a teacher's included."""
        return self.learns.flops_per_token(row_length)

    @property
    def repeats(self) -> Repeats | None:
        """What is left out of the loss because it is repeated."""
        own = self.objective.repeats
        return Repeats(own.min_period, own.max_period, own.max_count, own.mask == "row") if own.asked else None

    @property
    def batches(self) -> tuple[Steps, ...]:
        """The steps of every stage and what each of them reads, for the learning rate."""
        stages = self.batch.plan(self.train.steps)
        return tuple(Steps(stage.steps, stage.rows * stage.row_length) for stage in stages)

    @property
    def row_length(self) -> int:
        """The window that the model ends with: the row length of the last stage."""
        return self.batch.plan(self.train.steps)[-1].row_length


class Program(NamedTuple):
    """What a run computes, independent of its data: a mesh of devices that exist, or of a topology that does not."""

    step: Step
    init: Callable[[], state.TrainState]  # with fresh parameters
    begin: Callable[[Any], state.TrainState]  # with the model's parameters given
    abstract: state.TrainState
    shardings: state.TrainState
    teacher: tuple[Any, ...] = ()  # what the step takes behind a batch, in shapes: parameters of a teacher


def make_program(run: Run, mesh: jax.sharding.Mesh) -> Program:
    """The jitted step and initial state on a mesh; nothing is compiled or allocated yet."""
    require_split(run, mesh)
    optimizer, schedule = build(run.optim, run.steps, run.batches)
    abstract, shardings = _layout(run, mesh, run.mesh)
    if run.train.offload_optimizer:
        shardings = sharding.offloaded(shardings, abstract)
    teacher = (layout(run.teacher, mesh, run.mesh),) if run.teacher else ()
    objective = run.learns
    step = make_step(objective, optimizer, schedule, shardings, run.train.microbatches)
    laid_out = jax.tree.map(lambda own: own.sharding, teacher)
    step = compile_step(step, shardings, sharding.batch_sharding(mesh), laid_out)
    init = jax.jit(lambda: state.init(objective, optimizer, run.seed), out_shardings=shardings)
    begin = jax.jit(
        lambda params: state.begin(params | objective.own(run.seed), optimizer),
        out_shardings=shardings,
        donate_argnums=0,
    )
    return Program(step, init, begin, abstract, shardings, teacher)


def _layout(run: Run, mesh: jax.sharding.Mesh, config: MeshConfig) -> tuple[state.TrainState, state.TrainState]:
    """Shapes of the state, and where its arrays live."""
    abstract = abstract_state(run)
    return abstract, sharding.state_shardings(abstract, mesh, config)


def abstract_state(run: Run) -> state.TrainState:
    """Shapes and dtypes of the state."""
    return state.abstract(run.learns, build(run.optim, run.steps, run.batches)[0])


def require_optimizer(run: Run) -> None:
    """Refuses what the optimiser cannot be, or cannot be for this model; nothing is allocated."""
    abstract_state(run)


def require_layout(run: Run) -> None:
    """Refuses batches and parameters that do not split over the devices; nothing is allocated."""
    devices = jax.devices()
    mesh = sharding.abstract_mesh(run.mesh, len(devices), sharding.count_slices(devices))
    require_split(run, mesh)
    _layout(run, mesh, run.mesh)
    if run.teacher:
        layout(run.teacher, mesh, run.mesh)


def require_split(run: Run, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Refuses batches that the mesh and the microbatches do not divide; the mesh may be abstract."""
    parts, microbatches, context = sharding.batch_parts(mesh), run.train.microbatches, mesh.shape["context"]
    for number, stage in enumerate(run.batch.plan(run.train.steps)):
        where = f"stages[{number}]." if run.batch.stages else ""
        if stage.rows % (parts * microbatches):
            each = f" with {microbatches} train.microbatches each" if microbatches > 1 else ""
            unit = "devices" if parts == mesh.size else "parts of the mesh (replica x fsdp)"
            raise UserError(
                f"config batch.{where}rows={stage.rows} is not a multiple of the {parts} {unit}"
                f"{hosts.shown()}{each}; a multiple of {parts * microbatches} is"
            )
        if stage.row_length % context:
            raise UserError(
                f"config batch.{where}row_length={stage.row_length} is not a multiple of mesh.context={context}"
            )


def open_stored(run: Run, workdir: Path, shards: TokenShards) -> Targets | None:
    """The stored targets that a run learns from, if it does; refuses those that `config.teach` does not ask for."""
    if not run.objective.targets.asked:
        return None
    remedy = "set config.teach back, or run `launch.py teach --rebuild`"
    require_spec(workdir / TARGETS, read_targets(workdir), {"teach": run.teach.decides()}, remedy)
    return open_targets(workdir, shards, run.added)


def open_corpus(run: Run, workdir: Path) -> Corpus:
    """The training documents as the objective reads them."""
    shards, config = open_split(workdir, "train", run.added), run.objective.fill_in_the_middle
    if not config.asked:
        return Corpus(shards, run.seed)
    for name in config.sources:
        if name not in shards.source_names:
            raise UserError(
                f"config objective.fill_in_the_middle.sources names a source {name} that no document has"
                f"{suggest(name, shards.source_names)}"
            )
    tokenizer = open_tokenizer(workdir)
    require_sentinels(config, tokenizer.special_tokens, str(tokenizer.path))
    ids = {key: tokenizer.special_tokens[name] for key, name in config.sentinels.items()}
    begin, end = map(len, tokenizer.around)
    rates = {"rate": config.rate, "spm_rate": config.spm_rate, "sources": config.sources}
    return Corpus(shards, run.seed, FillInTheMiddle(run.seed, **rates, **ids, begin=begin, end=end))


def require_sentinels(config: FillInTheMiddleConfig, special: Collection[str], where: str) -> None:
    """Refuses to rearrange documents by tokens that are not `special` in a tokenizer."""
    for key, name in config.sentinels.items():
        if name not in special:
            raise UserError(
                f"config objective.fill_in_the_middle.{key}: {name!r} is not a special token of {where}"
                f"{suggest(name, special)}; name one that is, or train a tokenizer with tokenizer.special="
                f"{list(config.sentinels.values())}"
            )


def first_state(run: Run, workdir: Path, program: Program) -> state.TrainState:
    """The state before the first step."""
    if not run.start.folder:
        return program.init()
    return program.begin(imported_params(run.start, run.model, workdir, run.mesh))


def run_spec(run: Run, workdir: Path) -> dict[str, Any]:
    """What decides the parameters that come out and cannot change within a run; the rest is in its history."""
    tokens = read_stage(workdir / TOKENS, "tokenize")["summary"]
    if run.model.vocab_size < tokens["vocab_size"]:
        raise UserError(
            f"config model.vocab_size={run.model.vocab_size} is less than the tokenizer's {tokens['vocab_size']}; "
            f"set --config.model.vocab_size={tokens['vocab_size']}"
        )
    decides = {name: dataclasses.asdict(getattr(run, name)) for name in ("model", "objective", "optim")}
    # As the device, these decide no more than how results are rounded.
    del decides["model"]["kernels"]
    decides["model"]["remat"] = "none"  # not left out, so that the runs that have it so written down go on
    if not run.model.multi_token.modules:  # left out, so that runs from before there were any go on
        del decides["model"]["multi_token"]
        if not run.objective.multi_token.trunk:
            del decides["objective"]["multi_token"]
    teacher = {}
    del decides["objective"]["distill"]["teacher"]  # which may lie elsewhere tomorrow
    if run.teacher:
        teacher = {"teacher": run.teacher.spec}
    else:  # as in runs from before there was any
        del decides["objective"]["distill"]
    if run.objective.targets.asked:
        decides["targets"] = _stored_by(workdir)
    else:
        del decides["objective"]["targets"]
    for name in ("fill_in_the_middle", "repeats"):  # as in runs from before there were any
        if not getattr(run.objective, name).asked:
            del decides["objective"][name]
    shards = [shard["hash"] for shard in tokens["train"]["shards"]]
    begins = start_spec(run.start, workdir)
    return {"version": VERSION, **decides, "seed": run.seed, "tokens": shards, **begins, **teacher}


def _stored_by(workdir: Path) -> dict[str, Any]:
    """How the stored targets were made; once a run has begun and they are gone, what the run's spec says of them."""
    begun = workdir / FOLDER / MANIFEST
    if not (workdir / TARGETS).exists() and begun.exists() and "targets" in (spec := read_json(begun)["spec"]):
        return spec["targets"]
    return made_by(read_stage(workdir / TARGETS, "teach")["spec"])


def made_from(run: Run, workdir: Path) -> dict[str, Any]:
    """What decides the parameters that `load_params` gives: a run or, before one began, an import."""
    if is_only_imported(run.start, workdir):
        return start_spec(run.start, workdir)
    return run_spec(run, workdir)


def recorded_history(folder: Path) -> History:
    """The history of a run as last written or, without that file, of its newest checkpoint; empty before that."""
    if (folder / HISTORY).exists():
        return data_history.read(folder / HISTORY)
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    newest = checkpoints.latest
    return data_history.from_json(checkpoints.record(newest)["history"]) if newest is not None else ()


def require_history(run: Run, workdir: Path, corpus: Corpus) -> History:
    """The history of a run; refuses a config that asks for something else than it."""
    history = recorded_history(workdir / FOLDER)
    now = data_history.ask(run.batch, run.train.steps, corpus.generations, max(1, history[-1].step))
    data_history.continue_history(history, now, amend=False)
    return history


def open_plan(run: Run, workdir: Path, *, amend: bool = False) -> Plan:
    """The data of every step: by the history of the run or, before it begins, by the config.

    With `amend`, a config that asks for something else holds from the newest checkpoint on instead of being refused.
    """
    folder, corpus = workdir / FOLDER, open_corpus(run, workdir)
    recorded = recorded_history(folder)
    if not recorded:
        history = (data_history.ask(run.batch, run.train.steps, corpus.generations),)
    elif amend:
        step = Checkpoints(folder / CHECKPOINTS).latest or 0
        now = data_history.ask(run.batch, run.train.steps, corpus.generations, step)
        history = data_history.continue_history(recorded, now, amend=True)
    else:
        history = require_history(run, workdir, corpus)
    return Plan(history, corpus, run.seed)


def load_params(
    run: Run, workdir: Path, *, at_most: int | None = None, exactly: int | None = None
) -> tuple[Any, int]:
    """Parameters of the newest good checkpoint up to step `at_most`, or of that of step `exactly`, and its step."""
    folder = workdir / FOLDER
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    missing = f"{folder} holds no checkpoint yet; run `launch.py train` (same --config and --workdir) first"
    if not checkpoints.steps:
        if exactly is None and is_only_imported(run.start, workdir):
            return imported_params(run.start, run.model, workdir, MeshConfig()), 0
        raise UserError(missing)
    require_spec(folder, read_json(folder / MANIFEST), run_spec(run, workdir))
    require_history(run, workdir, open_corpus(run, workdir))
    abstract, shardings = _layout(run, sharding.make_mesh(), MeshConfig())  # of the devices here, not of the run
    if exactly is not None:
        return of_model(checkpoints.restore(abstract, shardings, exactly).params), exactly
    restored = checkpoints.restore_newest(abstract, shardings, at_most)
    if restored is None:
        raise UserError(missing)
    return of_model(restored.state.params), restored.step


def read_history(path: Path, saved: History, start: int) -> History:
    """The history as last written, where it goes on from the one `saved` with the checkpoint of step `start`."""
    written = data_history.read(path) if path.exists() else ()
    shorter, longer = sorted((written, saved), key=len)
    if longer[: len(shorter)] != shorter:
        raise UserError(
            f"{path} contradicts the checkpoint of step {start:,}; without that file the checkpoint's history holds"
        )
    return longer
