"""The loop: sets up, then reads aloud."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from core.files import MANIFEST, Stage, Stale, read_manifest, write_json
from core.progress import count, say, say_log
from data import history as data_history
from data.corpus import Corpus
from data.pipeline import Batches
from data.plan import Plan
from data.targets import Targets
from train import hosts, sharding, state
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.goodput import Goodput
from train.manifest import DamagedCheckpoint
from train.metrics import Journal
from train.run import (
    CHECKPOINTS,
    DEVICES,
    FOLDER,
    HISTORY,
    Program,
    Run,
    first_state,
    make_program,
    open_corpus,
    open_stored,
    read_history,
    recorded_history,
    run_spec,
)
from train.step import Step
from train.stop import Stop
from train.teacher import load_teacher, require_same_tokenizer

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

    What `make_evaluate()` gives is called with the parameters every `eval_every` steps and after the last, and its
    numbers join the metrics. SIGTERM and Ctrl-C save and raise `Stopped`.
    """
    goodput = Goodput()
    _keep_compiled(workdir)
    folder, corpus = workdir / FOLDER, open_corpus(run, workdir)
    if run.teacher and not run.teacher.gone:
        require_same_tokenizer(run.teacher, workdir)
    hosts.require_same({"spec": run_spec(run, workdir), "run": repr(run), "amendment": amendment, "stale": stale})
    stage = _open_stage(run, workdir, corpus, stale)
    hosts.barrier("the stage is open")
    hosts.require_shared(workdir)
    amendment = _without_done(amendment, folder)
    if is_finished(run, folder, corpus, amendment):
        say(f"train: {folder} is up to date")
        return
    targets = open_stored(run, workdir, corpus.shards)
    keep = {"keep_last": run.train.keep_checkpoints, "keep_every": run.train.keep_every}
    checkpoints = Checkpoints(folder / CHECKPOINTS, **keep)
    setup = set_up(run, folder, corpus, targets, checkpoints, amendment)
    if stage is not None:
        stage.reopen()
    journal = Journal(folder, setup.start, setup.batches.plan, goodput, run.optim.skip.nonfinite_limit)
    evaluate = make_evaluate() if make_evaluate is not None and run.train.eval_every else None
    done = _turn(run.train, setup, checkpoints, journal, evaluate, goodput)
    if stage is not None:
        plan, files = setup.batches.plan, [journal.path, folder / HISTORY]
        stage.finish(files, {"step": done, "tokens": plan.tokens, "steps": plan.steps, **_record(plan)})


def _turn(
    config: TrainConfig,
    setup: Setup,
    checkpoints: Checkpoints,
    journal: Journal,
    evaluate: Evaluate | None,
    goodput: Goodput,
) -> int:
    """Step after step, with what is due after each; gives how many are done. Raises `Stopped` where it was asked."""
    step, current, start, batches, batch_sharding = setup
    plan = batches.plan
    done, unread = start, None  # metrics of a step are read when the next one is already running
    with Stop() as stop, contextlib.closing(journal), contextlib.closing(checkpoints):
        for batch in _timed(batches.iterate(start, plan.steps), goodput):
            if jax.process_count() > 1:
                batch = sharding.to_global(batch, batch_sharding, plan.segment(done).stage.rows)
            current, metrics = step(current, batch)
            goodput.switch("step")
            done += 1
            hosts.reached(f"step {done:,}")
            if unread is not None:
                journal.log(*unread)
            stopping = stop.asked(done)
            evaluates = evaluate is not None and (done % config.eval_every == 0 or done == plan.steps)
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
                            checkpoints.save(current, done, _record(plan))
            if stopping:
                break
        if unread is not None:
            journal.log(*unread)
        with goodput.on("checkpoint"):
            checkpoints.wait()
    stop.raise_if_asked()
    return done


def _record(plan: Plan) -> dict[str, Any]:
    """What a checkpoint says of the data that it was trained on."""
    return {"history": data_history.to_json(plan.history)}


def _without_done(amendment: Amendment, folder: Path) -> Amendment:
    """Without a skip that the history holds already: the same command once more does not skip once more."""
    if amendment.skip is None:
        return amendment
    first, last = amendment.skip
    if (first - 1, last - first + 1) not in [(record.step, record.skip) for record in recorded_history(folder)]:
        return amendment
    say(f"train: what was planned for steps {first:,} to {last:,} is left out already")
    return amendment._replace(skip=None)


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
    now = data_history.ask(run.batch, run.train.steps, corpus.generations)
    if stale == "set_aside":  # what replaces the run must be possible
        make_program(run, sharding.make_mesh(run.mesh))
        Plan((now,), corpus, run.seed)
        open_stored(run, workdir, corpus.shards)
    if jax.process_index() != 0:
        return None
    stage = Stage(workdir / FOLDER, run_spec(run, workdir), stale=stale)
    if stale == "set_aside" and (recorded := recorded_history(stage.folder)) and not now.asks_as(recorded[-1]):
        stage.start_over("the config asks for other data than its history")
    return stage


def _keep_compiled(workdir: Path) -> None:
    """Compiled programs stay in the workdir, so that a restart does not compile again.

    Not on a CPU: there it takes seconds, and what is compiled belongs to one kind of processor.
    """
    if jax.default_backend() != "cpu" and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compile_cache"))


def set_up(
    run: Run,
    folder: Path,
    corpus: Corpus,
    targets: Targets | None,
    checkpoints: Checkpoints,
    amendment: Amendment,
) -> Setup:
    """Data, mesh, step and state, from the newest good checkpoint where there is one."""
    say_log("mesh")
    mesh = sharding.make_mesh(run.mesh)
    program = make_program(run, mesh)
    at_most = amendment.skip[0] - 1 if amendment.skip else None
    restored = checkpoints.restore_newest(program.abstract, program.shardings, at_most)
    current, start, record = restored or (first_state(run, folder.parent, program), 0, {"history": []})
    recorded = read_history(folder / HISTORY, data_history.from_json(record["history"]), start)
    now = data_history.ask(run.batch, run.train.steps, corpus.generations, start)
    history = data_history.continue_history(recorded, now, amend=amendment.amend)
    if amendment.skip:
        first, last = amendment.skip
        if restored is None and checkpoints.steps:
            raise UserError(
                f"no checkpoint from before step {first:,} is left to go back to; there are {checkpoints.steps} "
                "(train.keep_every keeps more)"
            )
        history = data_history.skip(history, first - 1, last - first + 1)
    plan = Plan(history, corpus, run.seed)  # refuses what cannot be, before anything is changed
    hosts.barrier("all have read the history")
    if amendment.skip:
        checkpoints.set_aside_after(start)
    if jax.process_index() == 0:
        data_history.write(folder / HISTORY, history)
        write_json(folder / DEVICES, sharding.described(mesh))  # that it goes on with, for the report
    batch_sharding = sharding.batch_sharding(mesh)
    say_log("kernels")
    split = sharding.shown(mesh)
    say(
        f"train: {count(run.model.num_parameters)} parameters, {plan.steps:,} steps, {count(plan.tokens)} tokens on "
        f"{jax.device_count()} {jax.devices()[0].platform}{hosts.shown()}"
        + (f", {split}" if split else "")
        + (f", from step {start:,}" if start else "")
    )
    return Setup(
        _taught(run, program),
        current,
        start,
        Batches(plan, functools.partial(sharding.host_rows, batch_sharding), targets, run.repeats),
        batch_sharding,
    )


def _taught(run: Run, program: Program) -> Step:
    """The step of a state and a batch; the parameters of a teacher lie beside the state, and stay."""
    teacher = tuple(load_teacher(run.teacher, own) for own in program.teacher)
    return lambda current, batch: program.step(current, batch, *teacher)


def is_finished(run: Run, folder: Path, corpus: Corpus, amendment: Amendment) -> bool:
    """True when the run has been trained to its end, its last checkpoint is whole, and no more is asked of it."""
    manifest = read_manifest(folder / MANIFEST)
    if not manifest["complete"] or amendment.skip:
        return False
    recorded, step = recorded_history(folder), manifest["summary"]["step"]
    now = data_history.ask(run.batch, run.train.steps, corpus.generations, step)
    if data_history.continue_history(recorded, now, amend=amendment.amend) != recorded:
        return False
    try:
        Checkpoints(folder / CHECKPOINTS).check(step)
    except DamagedCheckpoint as damage:
        say(f"train: {damage}; the last steps are trained again")
        return False
    return True
