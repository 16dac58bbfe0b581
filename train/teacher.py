"""Models that teach: one way to find them and to load them, for `objective.distill.teacher` and `teach.teacher`.

Either key names the workdir of a run that trained or imported, or a Hugging Face folder, such as an export. The spec
of what learns from a teacher says which one it is, by a hash of its parameters, wherever they lie. No checkpoint of a
run holds them: training reads them again when it goes on, and nothing else needs them.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from core.config import parse
from core.errors import UserError
from core.files import MANIFEST, fingerprint, hash_file, read_json, read_stage
from core.progress import count, say
from data import history
from data.tokenize import TOKENIZER, open_tokenizer
from data.tokenizer import open_tokenizer_file
from model import transformer
from model.config import Kernels, ModelConfig, MultiToken
from model.hf import read_params, require_tensors, weight_files
from model.hf_config import MAX_BYTES, read_config, read_json_object
from objectives.config import DistillConfig
from train import manifest, sharding, start
from train.checkpoint import Checkpoints
from train.config import MeshConfig
from train.state import Parameters

RUN = "train"  # the stage of a run, of this one's workdir and of the teacher's
DESCRIBED = "config.json"
WHAT = "the workdir of a run that trained or imported, or a Hugging Face folder"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model with its parameters on a disk."""

    folder: Path  # of a checkpoint, or with config.json and safetensors
    step: int | None  # of the checkpoint; None of a Hugging Face folder
    model: ModelConfig  # its trunk, computed as is asked
    tokenizer: Path = Path()  # its folder
    positions: int = 0  # that it reads at once; 0 where nobody says
    gone: str = ""  # hash of the parameters, where they are no longer there

    @functools.cached_property
    def weights(self) -> str:
        """Hash of the parameters: of a checkpoint's arrays, or of the files of a folder, a second a gigabyte."""
        if self.gone:
            return self.gone
        if self.step is None:
            return fingerprint({path.name: hash_file(path) for path in weight_files(self.folder)})
        saved = manifest.read_manifest(self.folder)["arrays"]
        names = manifest.describe({"params": transformer.abstract(self.model)})
        return fingerprint({name: saved[name] for name in names if name in saved})

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the signals that it gives, wherever it lies."""
        model = dataclasses.asdict(self.model)
        del model["kernels"]
        return {"model": model, "weights": self.weights}

    @property
    def seen(self) -> dict[str, list[int]]:
        """Size and time of the files that say what it is: as long as they stay, nothing need be hashed."""
        files = [MANIFEST] if self.step is not None else [DESCRIBED, *(p.name for p in weight_files(self.folder))]
        return start.seen_files(self.folder, files)


def teacher_of(config: DistillConfig, workdir: Path) -> Teacher | None:
    """The teacher of a run; once the run has begun and the teacher is gone, what the run's spec says of it."""
    if not config.teacher:
        return None
    folder, begun = Path(config.teacher).expanduser(), workdir / RUN / MANIFEST
    if not folder.exists() and begun.exists() and "teacher" in (spec := read_json(begun)["spec"]):
        model = parse(ModelConfig, spec["teacher"]["model"], "teacher.model")
        return Teacher(folder, None, model, gone=spec["teacher"]["weights"])
    return find_teacher("objective.distill.teacher", config.teacher, config.dtype)


def find_teacher(key: str, name: str, dtype: str) -> Teacher:
    """The model that a key of the config names; refuses what is none, or not whole."""
    folder = Path(name).expanduser()
    if not name:
        raise UserError(f"config {key} is empty; name {WHAT}")
    if not folder.is_dir():
        raise UserError(f"config {key}={name} does not exist; name {WHAT}")
    kinds = {f"{RUN}/{MANIFEST}": _trained, f"{start.FOLDER}/{MANIFEST}": _imported, DESCRIBED: _given}
    find = next((own for file, own in kinds.items() if (folder / file).is_file()), None)
    if find is None:
        lacks = f"no {RUN}/, no {start.FOLDER}/, no {DESCRIBED}"
        raise UserError(f"config {key}={name} is no teacher ({lacks}); name {WHAT}")
    found = find(folder)
    computed = {"dtype": dtype, "remat": "none", "kernels": Kernels(), "multi_token": MultiToken()}
    return dataclasses.replace(found, model=dataclasses.replace(found.model, **computed))


def _trained(workdir: Path) -> Teacher:
    """The last checkpoint of a run that is finished: one that goes on would be another teacher tomorrow."""
    stage = read_stage(workdir / RUN, "train")
    summary = stage["summary"]
    model = parse(ModelConfig, stage["spec"]["model"], "teacher.model")
    row_length = history.from_json(summary["history"])[-1].stages[-1].row_length
    folder = workdir / RUN / start.CHECKPOINTS / str(summary["step"])
    return Teacher(folder, summary["step"], model, workdir / TOKENIZER, max(row_length, _imported_positions(workdir)))


def _imported(workdir: Path) -> Teacher:
    stage = read_stage(workdir / start.FOLDER, "import")
    described = read_config(workdir / start.FOLDER)
    model = dataclasses.replace(described, vocab_size=stage["spec"]["model"]["vocab_size"])
    folder = workdir / start.FOLDER / start.CHECKPOINTS / "0"
    return Teacher(folder, 0, model, workdir / TOKENIZER, _imported_positions(workdir))


def _imported_positions(workdir: Path) -> int:
    """That the model which a run began with reads at once; 0 where nothing was imported."""
    folder = workdir / start.FOLDER
    return (read_stage(folder, "import")["summary"]["max_positions"] or 0) if (folder / MANIFEST).exists() else 0


def _given(folder: Path) -> Teacher:
    model = read_config(folder)
    require_tensors(folder, model)
    positions = read_json_object(folder / DESCRIBED, MAX_BYTES).get("max_position_embeddings")
    return Teacher(folder, None, model, folder, positions if isinstance(positions, int) else 0)


def require_reads(teacher: Teacher, key: str, tokens: int) -> None:
    """Refuses more tokens than a teacher reads at once."""
    if teacher.positions and tokens > teacher.positions:
        raise UserError(
            f"config {key}={tokens} is more than the {teacher.positions:,} tokens that the teacher {teacher.folder} "
            "reads at once; lower it"
        )


def require_same_tokenizer(teacher: Teacher, workdir: Path) -> None:
    """Refuses a teacher to whom an id is another text. Special tokens may have other names, as <unk> has."""
    own, theirs = open_tokenizer(workdir), open_tokenizer_file(teacher.tokenizer)
    if own.fingerprint == theirs.fingerprint:
        return
    special = {*own.special_tokens.values(), *theirs.special_tokens.values()}
    pairs = enumerate(zip(own.token_bytes, theirs.token_bytes))
    other = next((i for i, (ours, his) in pairs if ours != his and i not in special), None)
    if own.vocab_size != theirs.vocab_size:
        differ = f"{theirs.vocab_size:,} ids, not {own.vocab_size:,}"
    elif other is not None:
        differ = f"id {other} is {theirs.token_bytes[other]!r}, not {own.token_bytes[other]!r}"
    else:
        return
    raise UserError(
        f"the teacher's tokenizer {theirs.path} is another than {own.path} ({differ}), so its distributions are over "
        "other tokens; give both one tokenizer (config.tokenizer.path)"
    )


def layout(teacher: Teacher, mesh: Mesh, config: MeshConfig) -> transformer.Params:
    """Shapes of the parameters, and where they lie: as those of a student would."""
    dtype = teacher.model.dtype
    abstract = {"teacher": transformer.abstract(teacher.model)}  # by which messages tell them from the student's
    shardings = sharding.state_shardings(abstract, mesh, config)
    laid = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype, sharding=s), abstract, shardings)
    return laid["teacher"]


def load_teacher(teacher: Teacher, laid_out: transformer.Params) -> transformer.Params:
    """The parameters, as `layout` has them."""
    if teacher.gone:
        raise UserError(f"{teacher.folder} is gone, and the run cannot go on without its teacher")
    read = _read_folder if teacher.step is None else _read_checkpoint
    params = read(teacher, laid_out)
    say(f"teacher: {count(teacher.model.num_parameters)} parameters of {teacher.folder}")
    return params


def _read_checkpoint(teacher: Teacher, laid_out: transformer.Params) -> transformer.Params:
    abstract, shardings = transformer.abstract(teacher.model), jax.tree.map(lambda own: own.sharding, laid_out)
    saved = Checkpoints(teacher.folder.parent)
    params = saved.restore(Parameters(abstract), Parameters(shardings), teacher.step).params

    def cast(params: transformer.Params) -> transformer.Params:
        return jax.tree.map(lambda array, own: array.astype(own.dtype), params, laid_out)

    return jax.jit(cast, out_shardings=shardings, donate_argnums=0)(params)


def _read_folder(teacher: Teacher, laid_out: transformer.Params) -> transformer.Params:
    """By way of the host's memory, which holds all of them in the teacher's dtype."""
    dtype = jnp.dtype(teacher.model.dtype)
    params = read_params(teacher.folder, teacher.model, place=lambda leaf: leaf.astype(dtype))

    def put(own: jax.ShapeDtypeStruct, leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(own.shape, own.sharding, lambda index: leaf[index])

    return jax.tree.map(put, laid_out, params)
