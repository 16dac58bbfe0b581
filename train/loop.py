"""The loop: sets up, then reads aloud."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from core.files import MANIFEST, Stage, Stale, read_json, read_stage, require_spec
from core.progress import count, say
from data.config import BatchConfig
from data.pipeline import Batches
from data.tokenize import TOKENS, open_split
from model.config import ModelConfig
from objectives import next_token
from optim.build import build
from optim.config import OptimConfig
from train import sharding, state
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.metrics import Journal
from train.step import Step, compile_step, make_step
from train.stop import StopSignals

VERSION = 1
FOLDER = "train"

Evaluate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What training needs, each part from its own subtree of the config."""

    model: ModelConfig
    batch: BatchConfig
    optim: OptimConfig
    train: TrainConfig
    seed: int


class Setup(NamedTuple):
    """All that the loop turns."""

    step: Step
    state: state.TrainState
    start: int  # updates already done
    batches: Batches
    checkpoints: Checkpoints


def train(
    run: Run, workdir: Path, *, make_evaluate: Callable[[], Evaluate] | None = None, stale: Stale = "refuse"
) -> None:
    """Trains to `run.train.steps` from the newest checkpoint, or from the beginning.

    What `make_evaluate()` gives is called with the parameters every `eval_every` steps, and its numbers join the
    metrics. SIGTERM and Ctrl-C save and raise `Stopped`.
    """
    stage = Stage(workdir / FOLDER, run_spec(run, workdir), stale=stale)
    if stage.finished:
        say(f"train: {stage.folder} is up to date")
        return
    config, steps = run.train, run.train.steps
    step, current, start, batches, checkpoints = set_up(run, workdir)
    journal = Journal(stage.folder, start, steps, run.batch.rows * run.batch.row_length)
    evaluate = make_evaluate() if make_evaluate is not None and config.eval_every else None
    done, unread = start, None  # metrics of a step are read when the next one is already running

    with StopSignals() as stop, contextlib.closing(journal), contextlib.closing(checkpoints):
        for batch in batches.iterate(start, steps):
            current, metrics = step(current, batch)
            done += 1
            if unread is not None:
                journal.log(*unread)
            stopping = stop.received is not None
            evaluates = evaluate is not None and done % config.eval_every == 0
            saves = done % config.checkpoint_every == 0 or done == steps or stopping
            logs = done % config.log_every == 0 or done in (1, steps) or stopping
            unread = (done, metrics) if logs and not (saves or evaluates) else None
            if saves or evaluates:
                # A checkpoint is saved after what is written about its step: a kill in between repeats the step.
                journal.log(done, metrics, write=logs)
                with journal.paused():
                    if evaluates:
                        journal.write(done, evaluate(current.params))
                    if saves:
                        checkpoints.save(current, done)
            if stopping:
                break
        if unread is not None:
            journal.log(*unread)
    stop.raise_if_received()
    stage.finish([journal.path], {"step": done, "tokens": done * journal.tokens_per_step})


def set_up(run: Run, workdir: Path) -> Setup:
    """Data, mesh, step and state, from the newest checkpoint where there is one."""
    batches = Batches(open_split(workdir, "train"), run.batch, run.seed)
    program = make_program(run, sharding.make_mesh())
    checkpoints = Checkpoints(workdir / FOLDER / "checkpoints", run.train.keep_checkpoints)
    start = checkpoints.latest or 0
    current = checkpoints.restore(program.abstract, program.shardings, start) if start else program.init()
    tokens = run.train.steps * run.batch.rows * run.batch.row_length
    epochs = run.train.steps / batches.batches_per_epoch
    say(
        f"train: {count(run.model.num_parameters)} parameters, {run.train.steps:,} steps of {run.batch.rows} x "
        f"{run.batch.row_length} tokens = {count(tokens)} ({epochs:.2f} epochs) on {jax.device_count()} "
        f"{jax.devices()[0].platform}" + (f", from step {start:,}" if start else "")
    )
    return Setup(program.step, current, start, batches, checkpoints)


class Program(NamedTuple):
    """What a run computes, independent of its data: a mesh of devices that exist, or of a topology that does not."""

    step: Step
    init: Callable[[], state.TrainState]
    abstract: state.TrainState
    shardings: state.TrainState


def make_program(run: Run, mesh: jax.sharding.Mesh) -> Program:
    """The jitted step and initial state on a mesh; nothing is compiled or allocated yet."""
    if run.batch.rows % mesh.size:
        raise UserError(f"config batch.rows={run.batch.rows} is not a multiple of the {mesh.size} devices")
    optimizer, schedule = build(run.optim, run.train.steps)
    abstract = state.abstract(run.model, optimizer)
    shardings = sharding.state_shardings(abstract, mesh)
    loss = functools.partial(next_token.loss, run.model)
    step = compile_step(make_step(loss, optimizer, schedule), shardings, sharding.batch_sharding(mesh))
    init = jax.jit(lambda: state.init(run.model, optimizer, run.seed), out_shardings=shardings)
    return Program(step, init, abstract, shardings)


def run_spec(run: Run, workdir: Path) -> dict[str, Any]:
    """All that decides the parameters that come out."""
    tokens = read_stage(workdir / TOKENS, "tokenize")["summary"]
    if run.model.vocab_size < tokens["vocab_size"]:
        raise UserError(
            f"config model.vocab_size={run.model.vocab_size} is less than the tokenizer's {tokens['vocab_size']}"
        )
    decides = {name: dataclasses.asdict(getattr(run, name)) for name in ("model", "batch", "optim")}
    shards = [shard["hash"] for shard in tokens["train"]["shards"]]
    return {"version": VERSION, **decides, "steps": run.train.steps, "seed": run.seed, "tokens": shards}


def load_params(run: Run, workdir: Path) -> tuple[Any, int]:
    """Parameters of the newest checkpoint, on this host's devices, and its step."""
    folder = workdir / FOLDER
    checkpoints = Checkpoints(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if checkpoints is None or (step := checkpoints.latest) is None:
        raise UserError(
            f"{folder} holds no checkpoint yet; run `launch.py train` (same --config and --workdir) first"
        )
    require_spec(folder, read_json(folder / MANIFEST), run_spec(run, workdir))
    program = make_program(run, sharding.make_mesh())
    return checkpoints.restore(program.abstract, program.shardings, step).params, step
