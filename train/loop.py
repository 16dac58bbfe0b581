"""The loop: sets up, then reads aloud."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from core.files import MANIFEST, Stage, Stale, read_json, set_aside, write_json
from core.progress import count, say
from data import history as data_history
from data.corpus import Corpus
from data.pipeline import Batches
from data.plan import Plan
from data.tokenize import open_split
from train import hosts, sharding, state
from train.checkpoint import Checkpoints
from train.goodput import Goodput
from train.metrics import Journal
from train.run import CHECKPOINTS, FOLDER, HISTORY, Run, make_program, read_history, run_spec
from train.step import Step
from train.stop import Stop

Evaluate = Callable[[Any], dict[str, float]]


class Amendment(NamedTuple):
    """How a command wants the history of a run to go on, beside what its config says."""

    amend: bool = False  # what the config says now holds from the next step on
    skip: tuple[int, int] | None = None  # the data planned for these steps, the last included, is left out


class Setup(NamedTuple):
    """All that the loop turns."""

    step: Step
    state: state.TrainState
    start: int  # updates already done
    batches: Batches
    batch_sharding: jax.sharding.NamedSharding


def train(
    run: Run,
    workdir: Path,
    *,
    make_evaluate: Callable[[], Evaluate] | None = None,
    stale: Stale = "refuse",
    amendment: Amendment = Amendment(),  # noqa: B008 (immutable)
) -> None:
    """Trains to the end of the last stage from the newest good checkpoint, or from the beginning.

    What `make_evaluate()` gives is called with the parameters every `eval_every` steps, and its numbers join the
    metrics. SIGTERM and Ctrl-C save and raise `Stopped`.
    """
    goodput = Goodput()
    amendment = _without_done(amendment, workdir / FOLDER / HISTORY)
    folder, corpus = workdir / FOLDER, Corpus(open_split(workdir, "train", run.added), run.seed)
    stage = _open_stage(run, workdir, corpus, stale)
    hosts.barrier("the stage is open")
    if is_finished(run, folder, corpus, amendment):
        say(f"train: {folder} is up to date")
        return
    hosts.barrier("all know whether the run is finished")
    if stage is not None:
        stage.reopen()
    keep = {"keep_last": run.train.keep_checkpoints, "keep_every": run.train.keep_every}
    checkpoints = Checkpoints(folder / CHECKPOINTS, **keep)
    step, current, start, batches, batch_sharding = set_up(run, folder, corpus, checkpoints, amendment)
    plan, config = batches.plan, run.train
    record = {"history": data_history.to_json(plan.history)}
    journal = Journal(folder, start, plan, goodput)
    evaluate = make_evaluate() if make_evaluate is not None and config.eval_every else None
    done, unread = start, None  # metrics of a step are read when the next one is already running

    with Stop() as stop, contextlib.closing(journal), contextlib.closing(checkpoints):
        for batch in _timed(batches.iterate(start, plan.steps), goodput):
            if jax.process_count() > 1:
                batch = sharding.to_global(batch, batch_sharding, plan.segment(done).stage.rows)
            current, metrics = step(current, batch)
            goodput.switch("step")
            done += 1
            if unread is not None:
                journal.log(*unread)
            stopping = stop.asked(done)
            evaluates = evaluate is not None and done % config.eval_every == 0
            saves = done % config.checkpoint_every == 0 or done == plan.steps or stopping
            logs = done % config.log_every == 0 or done in (1, plan.steps) or stopping
            unread = (done, metrics) if logs and not (saves or evaluates) else None
            if saves or evaluates:
                # A checkpoint is saved after what is written about its step: a kill in between repeats the step.
                journal.log(done, metrics, write=logs)
                with journal.paused():
                    if evaluates:
                        with goodput.on("eval"):
                            journal.write(done, evaluate(current.params))
                    if saves:
                        with goodput.on("checkpoint"):
                            checkpoints.save(current, done, record)
            if stopping:
                break
        if unread is not None:
            journal.log(*unread)
        with goodput.on("checkpoint"):
            checkpoints.wait()
    stop.raise_if_asked()
    if stage is not None:
        files = [journal.path, folder / HISTORY]
        stage.finish(files, {"step": done, "tokens": plan.tokens, "steps": plan.steps, **record})


def _without_done(amendment: Amendment, path: Path) -> Amendment:
    """Without a skip that the history holds already: the same command once more does not skip once more."""
    if amendment.skip is None or not path.exists():
        return amendment
    first, last = amendment.skip
    done = [(record.step, record.skip) for record in data_history.from_json(read_json(path))]
    return amendment._replace(skip=None) if (first - 1, last - first + 1) in done else amendment


def _timed(batches: Iterator[Any], goodput: Goodput) -> Iterator[Any]:
    """The batches; waiting for one is data wait, the first call with one of a new shape is compiling."""
    shapes = set()
    goodput.switch("data")
    for batch in batches:
        shape = batch.tokens_BT.shape
        goodput.switch("step" if shape in shapes else "compile")
        shapes.add(shape)
        yield batch
        goodput.switch("data")


def _open_stage(run: Run, workdir: Path, corpus: Corpus, stale: Stale) -> Stage | None:
    """The stage, held by the first process; with `set_aside` also a run whose history the config contradicts is."""
    if jax.process_index() != 0:
        return None
    folder, spec = workdir / FOLDER, run_spec(run, workdir)
    if stale == "set_aside" and (folder / HISTORY).exists():
        last = data_history.from_json(read_json(folder / HISTORY))[-1]
        if not last.asks_as(data_history.ask(run.batch, run.train.steps, corpus.generations)):
            say(f"{folder} has another history than the config; set aside as {set_aside(folder)}")
    return Stage(folder, spec, stale=stale)


def set_up(run: Run, folder: Path, corpus: Corpus, checkpoints: Checkpoints, amendment: Amendment) -> Setup:
    """Data, mesh, step and state, from the newest good checkpoint where there is one."""
    mesh = sharding.make_mesh()
    program = make_program(run, mesh)
    at_most = amendment.skip[0] - 1 if amendment.skip else None
    restored = checkpoints.restore_newest(program.abstract, program.shardings, at_most)
    current, start, record = restored or (program.init(), 0, {"history": []})
    recorded = read_history(folder / HISTORY, data_history.from_json(record["history"]), start)
    now = data_history.ask(run.batch, run.train.steps, corpus.generations, start)
    history = data_history.continue_history(recorded, now, amend=amendment.amend)
    if amendment.skip:
        first, last = amendment.skip
        if restored is None and checkpoints.steps:
            raise UserError(f"no checkpoint from before step {first:,} is left to go back to")
        history = data_history.skip(history, first - 1, last - first + 1)
        checkpoints.set_aside_after(start)
    hosts.barrier("all have read the history")
    if jax.process_index() == 0:
        write_json(folder / HISTORY, data_history.to_json(history))
    plan = Plan(history, corpus, run.seed)
    batch_sharding = sharding.batch_sharding(mesh)
    tell = say if jax.process_index() == 0 else lambda _: None
    tell(
        f"train: {count(run.model.num_parameters)} parameters, {plan.steps:,} steps, {count(plan.tokens)} tokens on "
        f"{jax.device_count()} {jax.devices()[0].platform}{hosts.shown()}"
        + (f", from step {start:,}" if start else "")
    )
    return Setup(
        program.step,
        current,
        start,
        Batches(plan, functools.partial(sharding.host_rows, batch_sharding)),
        batch_sharding,
    )


def is_finished(run: Run, folder: Path, corpus: Corpus, amendment: Amendment) -> bool:
    """True when the run has been trained to its end and nothing else is asked of it."""
    manifest = read_json(folder / MANIFEST)
    if not manifest["complete"] or amendment.skip:
        return False
    recorded = data_history.from_json(manifest["summary"]["history"])
    now = data_history.ask(run.batch, run.train.steps, corpus.generations, manifest["summary"]["step"])
    return data_history.continue_history(recorded, now, amend=amendment.amend) == recorded
