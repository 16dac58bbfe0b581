"""The model that a run learns from: found in the workdir of another run, and loaded onto the mesh of this one.

The spec of the run says which it is, by its hashes. No checkpoint of the run holds its parameters: training reads
them again when it goes on, and nothing else needs them.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from core.config import parse
from core.errors import UserError
from core.files import MANIFEST, fingerprint, read_json, read_stage
from core.progress import count, say
from data.tokenize import open_tokenizer
from model import transformer
from model.config import Kernels, ModelConfig, MultiToken
from model.hf_config import read_config
from objectives.config import DistillConfig
from train import manifest, sharding, start
from train.checkpoint import Checkpoints
from train.config import MeshConfig
from train.state import Parameters

KEY = "config objective.distill.teacher"
RUN = "train"  # the stage of a run, of this one's workdir and of the teacher's


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model with its parameters on a disk."""

    checkpoints: Path
    step: int
    model: ModelConfig  # its trunk, computed as this run asks
    weights: str  # hash of the parameters
    tokenizer: str  # hash

    @property
    def spec(self) -> dict[str, Any]:
        """What decides the signals that it gives, wherever it lies."""
        model = dataclasses.asdict(self.model)
        del model["kernels"]
        return {"model": model, "weights": self.weights, "tokenizer": self.tokenizer}


def find_teacher(config: DistillConfig, workdir: Path) -> Teacher | None:
    """The teacher that the config names; once a run has begun and it is gone, what the run's spec says of it."""
    if not config.teacher:
        return None
    folder, begun = Path(config.teacher).expanduser(), workdir / RUN / MANIFEST
    if not folder.exists() and begun.exists() and "teacher" in (spec := read_json(begun)["spec"]):
        own = spec["teacher"]
        model = parse(ModelConfig, own["model"], "teacher.model")
        return Teacher(folder, -1, model, own["weights"], own["tokenizer"])
    if not folder.is_dir():
        raise UserError(f"{KEY}={config.teacher} does not exist; name the workdir of a run that trained or imported")
    if (folder / RUN / MANIFEST).exists():
        stage = read_stage(folder / RUN, "train")  # a teacher that goes on training would be another tomorrow
        model, step = parse(ModelConfig, stage["spec"]["model"], "teacher.model"), stage["summary"]["step"]
    elif (folder / start.FOLDER / MANIFEST).exists():
        stage = read_stage(folder / start.FOLDER, "import")
        described = read_config(folder / start.FOLDER)
        model, step = dataclasses.replace(described, vocab_size=stage["spec"]["model"]["vocab_size"]), 0
    else:
        hint = "; it is a Hugging Face folder: `launch.py import` (--config.start.folder) makes a workdir of it"
        what = hint if (folder / "config.json").exists() else " (no train/ and no import/)"
        raise UserError(f"{KEY}={config.teacher} is no workdir of a run that trained or imported{what}")
    own = {"dtype": config.dtype, "remat": "none", "kernels": Kernels(), "multi_token": MultiToken()}
    model = dataclasses.replace(model, **own)
    checkpoints = folder / (RUN if (folder / RUN / MANIFEST).exists() else start.FOLDER) / start.CHECKPOINTS
    saved = manifest.read_manifest(checkpoints / str(step))["arrays"]
    names = manifest.describe({"params": transformer.abstract(model)})
    weights = fingerprint({name: saved[name] for name in names if name in saved})
    return Teacher(checkpoints, step, model, weights, open_tokenizer(folder).fingerprint)


def layout(teacher: Teacher, mesh: Mesh, config: MeshConfig) -> transformer.Params:
    """Shapes of the parameters, and where they lie: as those of a student would."""
    dtype = teacher.model.dtype
    abstract = {"teacher": transformer.abstract(teacher.model)}  # by which messages tell them from the student's
    shardings = sharding.state_shardings(abstract, mesh, config)
    laid = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype, sharding=s), abstract, shardings)
    return laid["teacher"]


def load_teacher(teacher: Teacher, laid_out: transformer.Params) -> transformer.Params:
    """The parameters, as `layout` has them."""
    if not teacher.checkpoints.exists():
        raise UserError(f"{KEY}: {teacher.checkpoints} is gone, and the run cannot go on without its teacher")
    abstract = transformer.abstract(teacher.model)
    shardings = jax.tree.map(lambda own: own.sharding, laid_out)
    saved = Checkpoints(teacher.checkpoints)
    params = saved.restore(Parameters(abstract), Parameters(shardings), teacher.step).params
    say(
        f"train: {count(teacher.model.num_parameters)} parameters teach, of {teacher.checkpoints / str(teacher.step)}"
    )

    def cast(params: transformer.Params) -> transformer.Params:
        return jax.tree.map(lambda array, own: array.astype(own.dtype), params, laid_out)

    return jax.jit(cast, out_shardings=shardings, donate_argnums=0)(params)


def require_same_tokenizer(teacher: Teacher, workdir: Path, shards: str) -> None:
    """Refuses a teacher for whom the ids of this run's token shards mean something else."""
    if teacher.tokenizer != shards:
        raise UserError(
            f"{KEY} was trained with another tokenizer than the token shards of {workdir} were made with "
            f"({teacher.tokenizer[:12]} and {shards[:12]}), so an id is another text to it; set tokenizer.path to "
            "the tokenizer of the teacher"
        )
