"""What a workdir holds so far, as the report shows it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.config import parse
from core.files import MANIFEST, read_json
from data.history import to_json
from evals.figures import column
from model.config import ModelConfig
from objectives.build import build
from objectives.config import ObjectiveConfig
from train.metrics import read_metrics
from train.run import DEVICES, FOLDER, recorded_history

# Folders of the stages, and the verbs that make them.
VERBS = {"curated": "curate", "tokenizer": "tokenize", "tokens": "tokenize", "train": "train", "eval": "eval"}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a workdir holds so far."""

    config: Mapping[str, Any]
    workdir: Path
    manifests: dict[str, dict[str, Any]]  # of stages begun, by folder
    rows: list[dict[str, Any]]  # of metrics.jsonl
    result: dict[str, Any] | None  # eval.json

    def summary(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage said of itself."""
        manifest = self.manifests.get(stage, {"complete": False})
        return manifest["summary"] if manifest["complete"] else None

    @property
    def trained(self) -> dict[str, Any] | None:
        """What training was made from, finished or not."""
        return self.manifests.get("train", {}).get("spec")

    @property
    def devices(self) -> dict[str, Any] | None:
        """What training last ran on, by `train/sharding.py: described`."""
        path = self.workdir / FOLDER / DEVICES
        return read_json(path) if path.exists() else None

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stages of training as last asked for."""
        recorded = recorded_history(self.workdir / FOLDER)
        return to_json(recorded)[-1]["stages"] if recorded else []

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage["steps"] for stage in self.stages)

    @property
    def model(self) -> ModelConfig | None:
        """The shape of the model, once training has begun."""
        return parse(ModelConfig, self.trained["model"], "model") if self.trained else None

    def flops_per_token(self, row_length: int) -> float:
        """Training FLOPs a token, a teacher's included, once training has begun."""
        trained, temperature = self.trained, self.config.get("teach", {}).get("temperature", 1.0)
        objective = parse(ObjectiveConfig, trained.get("objective", {}), "objective")
        teacher = parse(ModelConfig, trained["teacher"]["model"], "teacher.model") if "teacher" in trained else None
        return build(self.model, objective, 1, teacher, temperature).flops_per_token(row_length)

    @property
    def step(self) -> int:
        """Updates done, as far as the metrics say."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(max(column(self.rows, "tokens")[1], default=0))

    @property
    def rate(self) -> float | None:
        """Median tokens per second: a mean would count compilation and pauses."""
        _, rates = column(self.rows, "tokens_per_second")
        return float(np.median(rates)) if len(rates) else None

    def rate_of(self, stage: int) -> float | None:
        """The same of one stage, where it has been trained."""
        before = [sum(own["steps"] for own in self.stages[:end]) for end in (stage, stage + 1)]
        rows = [row for row in self.rows if before[0] < row["step"] <= before[1]]
        _, rates = column(rows, "tokens_per_second")
        return float(np.median(rates)) if len(rates) else None

    @property
    def name(self) -> str:
        """What to call the run."""
        return self.workdir.resolve().name


def read(config: Mapping[str, Any], workdir: Path) -> Found:
    """Reads what the stages of a workdir left."""
    paths = {name: workdir / name / MANIFEST for name in VERBS}
    manifests = {name: read_json(path) for name, path in paths.items() if path.exists()}
    result = workdir / "eval" / "eval.json"
    rows = read_metrics(workdir / "train" / "metrics.jsonl") if "train" in manifests else []
    rows = rows if any("loss" in row for row in rows) else []  # an evaluation may be written before its step
    return Found(config, workdir, manifests, rows, read_json(result) if result.exists() else None)
