"""A curated corpus as a dataset of TFDS, prepared and read without TensorFlow.

    from data.tfds_builder import QuintetCorpus

    builder = QuintetCorpus(curated=["runs/fineweb/curated"], data_dir="~/tensorflow_datasets")
    builder.download_and_prepare()
    builder.as_data_source("train")[17]["text"]

`launch.py export-data` prepares it too. Who has the folder needs none of this code:
`tfds.data_source("quintet_corpus", data_dir=...)`.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from core.errors import UserError
from core.progress import Progress
from data.curated import Piece, pieces
from data.document import SCHEMA

Example = tuple[str, dict[str, str]]


class QuintetCorpus(tfds.core.ShardBasedBuilder):
    """Documents in hash order of their ids, with all their columns as strings; `meta` is JSON."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "As curated."}
    code_path = None  # beside which checksums of downloads would lie; to find it TFDS needs a package that it lacks

    def __init__(self, *, curated: Sequence[str | Path] = (), file_format: str = "array_record", **options: Any):
        """`curated` are the folders that `launch.py curate` made; what is prepared already is read without them."""
        super().__init__(file_format=file_format, **options)
        self.curated = [Path(folder).expanduser() for folder in curated]
        self._original_state = {**options, "curated": curated, "file_format": file_format}  # for pickles

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A text corpus curated by Quintet, in hash order of the documents' ids.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in SCHEMA.names}),
            license="Each document has its own, in the feature `license`.",
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, _: Any) -> Mapping[str, Sequence[Callable[[], Iterator[Example]]]]:
        found = pieces(self.curated)
        if not found:
            raise UserError(f"QuintetCorpus: {self.curated or 'no folder'} holds no curated documents; name some")
        self._bar = Progress("tfds", sum(piece.documents for own in found.values() for piece in own))
        return {split: [functools.partial(_examples, one, self._bar) for one in own] for split, own in found.items()}

    def _post_download_and_prepare_hook(self) -> None:
        self._bar.finish(f"{self._bar.done:,} documents")

    def _example_writer(self) -> writer.ExampleWriter:
        return _SameBytes(self.info.file_format)


class _SameBytes(writer.ExampleWriter):
    """Protobuf writes the features of an example in an order that differs from process to process, unless told."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        """All examples of a file, on the disk when it returns."""
        parse = tf_example_pb2.Example.FromString
        super().write(path, ((key, parse(one).SerializeToString(deterministic=True)) for key, one in examples))
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _examples(piece: Piece, bar: Progress) -> Iterator[Example]:
    for table in piece.tables():
        for row in table.to_pylist():
            yield row["id"], row
        bar.update(bar.done + table.num_rows)
