"""Where a run begins: fresh parameters, or those of a Hugging Face folder, grown to a larger vocabulary if asked.

workdir/import/checkpoints/0      the parameters, verified like those of any checkpoint
workdir/import/config.json        a copy; once imported, the folder may go
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.files import MANIFEST, Stage, Stale, atomic_write, hash_file, is_gone, read_json, read_stage, require_spec
from core.progress import count, say
from data.tokenize import TOKENIZER
from data.tokenizer_extend import GROWTH, read_growth
from model import transformer
from model.config import ModelConfig
from model.grow import NewIds, grow
from model.hf import read_params, require_tensors, weight_files
from model.hf_config import MAX_BYTES, read_config, read_json_object
from train import sharding
from train.checkpoint import Checkpoints
from train.config import MeshConfig, StartConfig
from train.manifest import DamagedCheckpoint
from train.state import TrainState

VERSION = 1
FOLDER, CHECKPOINTS = "import", "checkpoints"
# What a config may make of an imported model; all else is as its folder says.
CHANGEABLE = ("dtype", "remat", "kernels", "init_std", "rope_theta", "rope_scaling", "vocab_size")
EMPTY = "config start.folder is empty; name the Hugging Face folder to import"


def fill_in(tree: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """A config tree whose `start.folder` says what it leaves open: the model's shape and the tokenizer.

    Keys that the tree gives win: `model.dtype`, `model.rope_scaling`, a larger `model.vocab_size`.
    """
    start = tree.get("start", {})
    folder = start.get("folder") if isinstance(start, Mapping) else None
    if not folder:
        if not tree.get("model"):
            raise UserError(EMPTY)
        return dict(tree)
    tokenizer = {"path": str(folder), **tree.get("tokenizer", {})}
    gone = is_gone(str(folder), workdir / FOLDER)
    shape = dataclasses.asdict(read_config(workdir / FOLDER if gone else Path(str(folder)).expanduser()))
    extended = str(tokenizer.get("extend_to", 0))  # typed on the command line it is still text
    if extended.isdecimal():
        shape["vocab_size"] = max(shape["vocab_size"], int(extended))
    return {**tree, "tokenizer": tokenizer, "model": {**shape, **tree.get("model", {})}}


def require_importable(start: StartConfig, model: ModelConfig) -> ModelConfig:
    """The model of `start.folder`; refuses a folder that is not whole, and a config that asks for another model."""
    if not start.folder:
        raise UserError(EMPTY)
    folder = Path(start.folder).expanduser()
    described = read_config(folder)
    for field in dataclasses.fields(described):
        asked, there = getattr(model, field.name), getattr(described, field.name)
        if asked != there and field.name not in CHANGEABLE:
            raise UserError(
                f"config model.{field.name}={asked!r}, but the model of {folder} has {there!r}; leave the key out"
            )
    if model.vocab_size < described.vocab_size:
        rows = described.vocab_size
        raise UserError(f"config model.vocab_size={model.vocab_size} is less than the {rows} rows of {folder}")
    require_tensors(folder, described)
    return described


def needs_no_folder(start: StartConfig, model: ModelConfig, workdir: Path) -> bool:
    """Whether the folder that was imported is gone, and what was made of it is whole."""
    stage = workdir / FOLDER
    if not is_gone(start.folder, stage):
        return False
    require_spec(stage, read_stage(stage, "import"), _spec(start, model))
    checkpoints = Checkpoints(stage / CHECKPOINTS)
    return bool(checkpoints.steps) and _damage(checkpoints) is None


def import_model(start: StartConfig, model: ModelConfig, workdir: Path, *, stale: Stale = "refuse") -> None:
    """Makes `workdir/import` from `start.folder`."""
    if needs_no_folder(start, model, workdir):
        say(f"import: {workdir / FOLDER} is up to date; {start.folder} is no longer there")
        return
    described = require_importable(start, model)
    folder = Path(start.folder).expanduser()
    files = weight_files(folder)
    spec = _spec(start, model) | {
        "files": {path.name: hash_file(path) for path in (folder / "config.json", *files)},
        "growth": _growth_hash(workdir),
    }
    seen = seen_files(folder, spec["files"])
    stage = Stage(workdir / FOLDER, spec, stale=stale)
    checkpoints = Checkpoints(stage.folder / CHECKPOINTS, keep_last=1)
    if damage := _damage(checkpoints):
        say(f"import: {damage}")
        checkpoints.set_aside_after(-1)
    if stage.finished and checkpoints.steps:
        say(f"import: {stage.folder} is up to date")
        return
    stage.reopen()
    params = read_params(folder, described)
    if spec["growth"] or model.vocab_size > described.vocab_size:  # new ids may fit into the padding's rows
        new = NewIds(*read_growth(workdir / TOKENIZER / GROWTH)) if spec["growth"] else _padding(described)
        _, params = grow(described, params, new, model.vocab_size, start.new_rows, start.seed)
        params = jax.tree.map(jnp.asarray, params)  # the tables that grew
    if not checkpoints.steps:  # else of an import that was killed
        checkpoints.save(_state(params), 0, {"from": str(folder)})
    checkpoints.close()
    copy = stage.folder / "config.json"
    with atomic_write(copy) as file:
        file.write((folder / "config.json").read_bytes())
    positions = read_json_object(copy, MAX_BYTES).get("max_position_embeddings")
    summary = {"parameters": model.num_parameters, "max_positions": positions, "seen": seen}
    stage.finish([copy], summary | {"source": str(folder.resolve())})
    say(f"import: {count(model.num_parameters)} parameters of {folder} in {stage.folder}")


def require_imported(start: StartConfig, workdir: Path) -> None:
    """Refuses a `start.folder` that holds other files than those that were imported, if something was."""
    stage, folder = workdir / FOLDER, Path(start.folder).expanduser()
    if not start.folder or not (stage / MANIFEST).exists() or is_gone(start.folder, stage):
        return
    manifest = read_stage(stage, "import")
    names = manifest["spec"]["files"]
    if seen_files(folder, names) == manifest["summary"].get("seen"):
        return  # of equal size and time: hashing takes a second a gigabyte
    for name in names:
        if not (folder / name).is_file():
            serves = f"without the whole folder {stage} serves"
            raise UserError(f"{folder / name}, which was imported, does not exist; bring it back ({serves})")
    require_spec(stage, manifest, {"files": {name: hash_file(folder / name) for name in names}})


def seen_files(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of files that are there."""
    stats = {name: (folder / name).stat() for name in names if (folder / name).is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def imported_params(start: StartConfig, model: ModelConfig, workdir: Path, mesh: MeshConfig) -> transformer.Params:
    """The parameters that `import` made for this config."""
    folder = workdir / FOLDER
    require_spec(folder, read_stage(folder, "import"), _spec(start, model))
    abstract = _state(transformer.abstract(model))
    shardings = sharding.state_shardings(abstract, sharding.make_mesh(mesh), mesh)
    try:
        return Checkpoints(folder / CHECKPOINTS).restore(abstract, shardings, 0).params
    except DamagedCheckpoint as damage:
        again = "run `launch.py import` (same --config and --workdir) to make it again"
        raise UserError(f"{damage}; {again}") from damage


def _damage(checkpoints: Checkpoints) -> DamagedCheckpoint | None:
    """What is wrong with the files of what was saved, if something is."""
    try:
        for step in checkpoints.steps:
            checkpoints.check(step)
    except DamagedCheckpoint as damage:
        return damage
    return None


def is_only_imported(start: StartConfig, workdir: Path) -> bool:
    """Whether there is a model to look at, but no trained one yet."""
    return bool(start.folder) and not Checkpoints(workdir / "train" / "checkpoints").steps


def start_spec(start: StartConfig, workdir: Path) -> dict[str, Any]:
    """What decides the parameters before the first step; nothing where they are drawn."""
    if not start.folder:
        return {}
    return {"start": read_stage(workdir / FOLDER, "import")["spec"]}


def imported_positions(start: StartConfig, workdir: Path) -> int:
    """The longest row that the imported model was made for, 0 where nothing was imported."""
    if not start.folder:
        return 0
    return read_stage(workdir / FOLDER, "import")["summary"]["max_positions"] or 0


def _spec(start: StartConfig, model: ModelConfig) -> dict[str, Any]:
    """What the config decides of an import: all but where the folder lies, which may change, and the computation."""
    own = dataclasses.asdict(start)
    del own["folder"]
    shape = dataclasses.asdict(model)
    for name in set(CHANGEABLE) - {"vocab_size"}:
        del shape[name]
    if not model.multi_token.modules:  # as in imports from before there were any
        del shape["multi_token"]
    return {"version": VERSION, "start": own, "model": shape}


def _state(params: transformer.Params) -> TrainState:
    """Parameters in the form in which checkpoints hold them, without an optimiser."""
    return TrainState(jnp.zeros((), jnp.int32), params, {})


def _growth_hash(workdir: Path) -> str | None:
    """Of what the tokenize stage added to the vocabulary, if it did."""
    folder = workdir / TOKENIZER
    if not (folder / MANIFEST).exists() or "extend_to" not in read_json(folder / MANIFEST)["spec"]["tokenizer"]:
        return None
    read_stage(folder, "tokenize")
    return hash_file(folder / GROWTH)


def _padding(described: ModelConfig) -> NewIds:
    """No new ids: more rows than the tokenizer has ids."""
    return NewIds(described.vocab_size, np.zeros(0, np.int32), np.zeros(1, np.int64))
