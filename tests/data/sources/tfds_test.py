"""Datasets of TFDS on this machine, without TensorFlow: whole, damaged, and described by strangers."""

import functools
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.record_writer import RecordWriter

from core.errors import UserError
from core.files import read_json
from data.config import DataConfig
from data.curate.engine import curate
from data.curate.labelled import Place
from data.document import Document, Dropped
from data.sources import tfds, tfrecord
from lab import ROOT

features = tensorflow_datasets.features
TEXTS = {name: features.Text() for name in ("id", "text", "url", "language", "license", "date")}


class Made(tensorflow_datasets.core.ShardBasedBuilder, skip_registration=True):
    """Prepares the examples that it is given, two files a split."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    code_path = None
    name = "made"

    def __init__(self, splits, kinds, **options):
        self.given, self.kinds = splits, kinds
        super().__init__(file_format="array_record", **options)

    def _info(self):
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(self.kinds))

    def _shard_iterators_per_split(self, _):
        halves = {split: (rows[: len(rows) // 2], rows[len(rows) // 2 :]) for split, rows in self.given.items()}
        return {split: [functools.partial(enumerate, rows) for rows in own] for split, own in halves.items()}


def prepare(data_dir, splits, kinds=TEXTS):
    """A dataset of ArrayRecord files; its folder."""
    builder = Made(splits, kinds, data_dir=data_dir)
    builder.download_and_prepare()
    return data_dir / "made" / "1.0.0"


def as_tfrecord(folder):
    """The same in TFRecord files, written by tensorboardX."""
    for path in sorted(folder.glob("*.array_record-*")):
        records = tfds.array_record_module.ArrayRecordReader(str(path)).read_all()
        writer = RecordWriter(str(path.with_name(path.name.replace("array_record", "tfrecord"))))
        for record in records:
            writer.write(record)
        writer.close()
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    return folder


def rows(count, name="d", **given):
    return [
        {**dict.fromkeys(TEXTS, ""), "id": f"{name}{number}", "text": f"{name} says {number} é", **given}
        for number in range(count)
    ]


def read_all(root, columns=None):
    return [item for partition in tfds.partitions(root) for item in tfds.read(root, partition, columns)]


def ids(root):
    return [item.id for item in read_all(root)]


@pytest.fixture
def folder(tmp_path):
    """A dataset with a training and a test split."""
    return prepare(tmp_path / "data", {"train": rows(10), "test": rows(4, "t")})


def test_documents_have_what_the_dataset_says_of_them(tmp_path):
    full = {"id": "a", "text": "é", "url": "u", "language": "de", "license": "CC0-1.0", "date": "2020"}
    folder = prepare(tmp_path, {"train": [full, {**dict.fromkeys(TEXTS, ""), "text": "bare"}]})
    place = "made-train.array_record-00001-of-00002:1"
    assert read_all(f"tfds:{folder}") == [
        Document("a", "é", "tfds", "u", "de", "CC0-1.0", {"date": "2020"}),
        Document(place, "bare", "tfds", place),
    ]


def test_what_is_no_text_is_dropped_with_a_reason(tmp_path):
    kinds = {"text": features.Scalar(dtype=np.object_)} | {"id": features.Text()}
    broken = [{"id": "a", "text": b"caf\xe9"}, {"id": "b", "text": b"fine"}]
    folder = prepare(tmp_path, {"train": broken}, kinds)
    found = read_all(f"tfds:{folder}")
    assert found[0] == Dropped("made-train.array_record-00000-of-00002:1", "tfds", "undecodable", 4)
    assert found[1].text == "fine"

    path = folder / "made-train.array_record-00000-of-00002"
    example = tensorflow_datasets.proto.tf_example_pb2.Example()
    example.features.feature["text"].bytes_list.value.extend([b"one", b"two"])
    for payload, reason in (
        (b"\xff\xff no protobuf", "not_example"),
        (b"", "no_text"),
        (example.SerializeToString(), "no_text"),
    ):
        writer = tfds.array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        writer.write(payload)
        writer.close()
        assert read_all(f"tfds:{folder}")[0].reason == reason


def test_a_dataset_is_found_by_path_and_by_name(folder, tmp_path, monkeypatch):
    names = [f"d{number}" for number in range(10)]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    roots = [folder, folder.parent, "./data/made", "data/made/1.0.0", "made", "made:1.0.0", "made:1.*.*"]
    assert all(ids(f"tfds:{root}") == names for root in roots)

    newer = prepare(tmp_path / "newer", {"train": rows(2, "n")})
    newer.rename(folder.with_name("1.10.0"))
    folder.with_name("incomplete.ABC_2.0.0").mkdir()
    assert ids("tfds:made") == ["n0", "n1"]
    assert ids("tfds:made:1.0.0") == names

    shutil.copytree(folder.parent, tmp_path / "data" / "other" / "big")
    shutil.copytree(folder, tmp_path / "data" / "other" / "small" / "1.0.0")
    assert ids("tfds:other/big:1.0.0") == ids("tfds:other/small") == names
    for root, said in {
        "tfds:other": "holds several, name one of big, small",
        "tfds:made:3.0.0": "nothing like it is prepared in .*/data/made; `tfds build NAME",
        "tfds:nothing": "nothing like it is prepared",
        "tfds:data/made/2.0.0": "nothing like it is prepared in data/made/2.0.0",
        "tfds:": "nothing like it is prepared in .",
    }.items():
        with pytest.raises(UserError, match=said):
            tfds.partitions(root)


def test_train_is_read_unless_another_split_is_asked_for(folder, capsys):
    root = f"tfds:{folder}"
    assert tfds.inputs(root)["split"] == "train"
    assert "the split train is read, not test (@all reads every one)" in capsys.readouterr().err
    assert ids(f"{root}@test") == ["t0", "t1", "t2", "t3"]
    assert tfds.inputs(f"{root}@test")["split"] == "test"
    assert not capsys.readouterr().err
    assert ids(f"{root}@train[40%:60%]+test[:1]") == ["d4", "d5", "t0"]
    assert len(ids(f"{root}@all")) == 14
    assert [item.url for item in read_all(f"{root}@train[6:7]")] == ["made-train.array_record-00001-of-00002:2"]
    for split, said in {
        "dev": r"Unknown split 'dev'. Should be one of \['test', 'train'\]|\['train', 'test'\]",
        "train[": "Error parsing split",
        "train[5:3]": "its split train.5:3. has no records; choose with @ of test, train",
    }.items():
        with pytest.raises(UserError, match=said):
            tfds.partitions(f"{root}@{split}")


def test_a_path_may_have_an_at_sign(tmp_path):
    folder = prepare(tmp_path / "me@home", {"train": rows(2), "test": rows(1, "t")})
    assert ids(f"tfds:{folder}") == ["d0", "d1"]
    assert ids(f"tfds:{folder}@test") == ["t0"]


def test_features_are_chosen_by_their_names_as_an_example_has_them(tmp_path):
    kinds = {
        "pair": features.Translation(languages=["en", "de"]),
        "n": features.Scalar(dtype=np.int64),
        "tags": features.Sequence(features.Text()),
        "image": features.Tensor(shape=(2, 2), dtype=np.uint8),
    }
    row = {"pair": {"en": "one", "de": "eins"}, "n": 1, "tags": ["x"], "image": [[0, 1], [2, 3]]}
    folder = prepare(tmp_path, {"train": [row, row]}, kinds)
    assert [item.text for item in read_all(f"tfds:{folder}", {"text": "pair/de"})] == ["eins", "eins"]
    for columns, said in {
        None: "has no feature `text` of strings; it has image, n, pair/de, pair/en, tags; data.columns can name",
        "tags": "has no feature `tags` of strings, as data.columns names its text",
        "n": "has no feature `n` of strings",
    }.items():
        with pytest.raises(UserError, match=said):
            read_all(f"tfds:{folder}", columns and {"text": columns})


def test_an_id_may_be_an_integer(tmp_path):
    kinds = {
        "text": features.Text(),
        "id": features.Scalar(dtype=np.int64),
        "number": features.Scalar(dtype=np.int32),
    }
    folder = prepare(tmp_path, {"train": [{"text": "a", "id": -(2**40), "number": 7}]}, kinds)
    assert ids(f"tfds:{folder}") == [str(-(2**40))]
    assert [item.id for item in read_all(f"tfds:{folder}", {"id": "number"})] == ["7"]
    with pytest.raises(UserError, match="no feature `number` of strings"):
        read_all(f"tfds:{folder}", {"url": "number"})


def test_tfrecord_files_hold_the_same(folder):
    before = [vars(item) | {"url": ""} for item in read_all(f"tfds:{folder}@all")]
    as_tfrecord(folder)
    assert [vars(item) | {"url": ""} for item in read_all(f"tfds:{folder}@all")] == before
    assert ids(f"tfds:{folder}@train[3:8]") == ["d3", "d4", "d5", "d6", "d7"]


def test_a_large_file_is_shared_among_workers(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "data", {"train": rows(100, text="x" * 2000), "test": rows(2)})
    as_tfrecord(folder)
    whole = ids(f"tfds:{folder}")
    assert len(tfds.partitions(f"tfds:{folder}")) == 1
    monkeypatch.setattr("data.sources.folder.LEAST_BYTES", 20_000)
    found = tfds.partitions(f"tfds:{folder}")
    assert len(found) > 8
    assert max(len(partition) for partition in found) == 1
    assert ids(f"tfds:{folder}") == whole


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 1 << 40))
def test_parts_are_all_records_once(first, count, size):
    piece = tfds.Piece("f", first, first + count)
    parts = [part for part, _ in tfds._parts(piece, size, 64 << 20)]
    assert [number for part in parts for number in range(part.first, part.end)] == list(range(first, first + count))
    assert all(part.end > part.first for part in parts)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    folder = prepare(tmp_path / "data", {"train": rows(60), "test": rows(2, "t")})
    config = {"sources": {"a": f"tfds:{folder}", "b": f"tfds:{folder}@test"}, "heldout_fraction": 0.2}
    one = curate(DataConfig(**config, workers=1), tmp_path / "one")
    two = curate(DataConfig(**config, workers=2), tmp_path / "two")
    assert one["hashes"] == two["hashes"]
    assert one["train"]["documents"] + one["heldout"]["documents"] == 62


def test_the_report_names_the_dataset_and_a_judge_learns_from_it(folder, tmp_path):
    curate(DataConfig(path=f"tfds:{folder}@all", heldout_fraction=0.2, workers=1), tmp_path / "work")
    assert read_json(tmp_path / "work" / "curated" / "report.json")["input"] == "data/made/1.0.0@all"
    place = Place("made", "positive", f"tfds:{folder}@test")
    found = [item.id for partition in place.partitions() for item in place.module.read(place.root, partition)]
    assert found == ["t0", "t1", "t2", "t3"]


def test_a_flipped_bit_costs_its_record(tmp_path):
    folder = prepare(tmp_path, {"train": rows(40, text="some words that are said often")})
    path = folder / "made-train.array_record-00000-of-00002"
    payload = path.read_bytes()
    whole = read_all(f"tfds:{folder}")
    draw, lost = random.Random(0), 0
    for _ in range(25):
        place = draw.randrange(100, payload.rstrip(b"\0").rfind(b"\0"))
        path.write_bytes(payload[:place] + bytes([payload[place] ^ 1 << draw.randrange(8)]) + payload[place + 1 :])
        found = read_all(f"tfds:{folder}")
        reasons = [item for item in found if isinstance(item, Dropped)]
        assert all(item.reason == "damaged_record" for item in reasons)
        assert [item for item in found if item in whole] == [item for item in found if item not in reasons]
        assert len(found) == 40
        lost += len(reasons)
    assert lost


def test_a_flipped_bit_of_a_tfrecord_is_told(tmp_path):
    folder = as_tfrecord(prepare(tmp_path, {"train": rows(6)}))
    path = folder / "made-train.tfrecord-00000-of-00002"
    payload = path.read_bytes()
    whole = read_all(f"tfds:{folder}")
    size = len(payload) // 3
    for place in range(0, len(payload), 5):
        path.write_bytes(payload[:place] + bytes([payload[place] ^ 4]) + payload[place + 1 :])
        if place % size < 12:
            with pytest.raises(UserError, match=r"the length of record . does not have its checksum"):
                read_all(f"tfds:{folder}")
        else:
            found = read_all(f"tfds:{folder}")
            assert [item.reason for item in found if isinstance(item, Dropped)] == ["damaged_record"]
            assert [item for item in found if item in whole] == whole[: place // size] + whole[place // size + 1 :]


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_a_file_that_is_cut_off_is_told(tmp_path, form):
    folder = prepare(tmp_path, {"train": rows(20)})
    if form == "tfrecord":
        as_tfrecord(folder)
    path = folder / f"made-train.{form}-00001-of-00002"
    payload = path.read_bytes()
    for size in (0, 5, len(payload) // 2, len(payload) - 1):
        path.write_bytes(payload[:size])
        with pytest.raises(UserError, match=f"{path.name} is damaged"):
            read_all(f"tfds:{folder}")
    path.unlink()
    with pytest.raises(UserError, match="is missing; copy or prepare the dataset again"):
        read_all(f"tfds:{folder}")


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_tfrecords_are_read_as_they_were_written(tmp_path_factory, payloads, data):
    path = tmp_path_factory.mktemp("records") / "file"
    writer = RecordWriter(str(path))
    for payload in payloads:
        writer.write(payload)
    writer.close()
    first = data.draw(st.integers(0, len(payloads)))
    end = data.draw(st.integers(first, len(payloads)))
    assert list(tfrecord.read(path, first, end)) == payloads[first:end]


def test_a_record_over_the_limit_costs_itself(tmp_path, monkeypatch):
    folder = as_tfrecord(prepare(tmp_path, {"train": [*rows(1), *rows(1, text="x" * 5000), *rows(2, "e")]}))
    monkeypatch.setattr(tfrecord, "MAX_RECORD_BYTES", 1000)
    assert [getattr(item, "reason", item.id) for item in read_all(f"tfds:{folder}")] == [
        "d0",
        "record_too_long",
        "e0",
        "e1",
    ]


def test_a_length_is_not_believed_beyond_the_file(tmp_path):
    length = tfrecord.LENGTH.pack(1 << 62)
    (tmp_path / "f").write_bytes(length + tfrecord.CRC.pack(tfrecord.checksum(length)) + b"short")
    with pytest.raises(UserError, match="it ends in record 1"):
        list(tfrecord.read(tmp_path / "f", 0, 1))


def test_no_module_is_imported_because_a_dataset_names_it(folder, monkeypatch):
    (folder.parent / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder.parent)
    described = folder / "features.json"
    plain = described.read_text()
    for key in ("pythonClassName", "python_class_name", "type"):
        named = plain.replace('"tensorflow_datasets.core.features.text_feature.Text"', '"evil.Feature"', 1)
        described.write_text(named.replace('"pythonClassName": "evil', f'"{key}": "evil'))
        with pytest.raises(UserError, match=r"names the class 'evil.Feature', which is none of TFDS's"):
            tfds.partitions(f"tfds:{folder}")
    for said in ("[", "[" * 100_000, "5", '{"type": {}}', "{}"):
        described.write_text(said)
        with pytest.raises(UserError, match=r"is not readable JSON|TFDS does not open"):
            tfds.partitions(f"tfds:{folder}")
    described.unlink()
    with pytest.raises(UserError, match=r"features.json is missing; TFDS 4 or newer writes it"):
        tfds.partitions(f"tfds:{folder}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"array_record"', '"riegeli"', "files of the format riegeli, which is not read"),
        ('"array_record"', '"parquet"', "files of the format parquet, which is not read"),
        ("{DATASET}-{SPLIT}", "../../{DATASET}-{SPLIT}", "leads out of|TFDS does not open"),
        ("{DATASET}-{SPLIT}", "/etc/{DATASET}-{SPLIT}", "leads out of|TFDS does not open"),
        ('"10"', '"many"', "TFDS does not open"),
        ("{", "[", "TFDS does not open"),
    ],
)
def test_what_describes_a_dataset_may_be_wrong(folder, old, new, said):
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"5"', '"10"', 1).replace(old, new))
    with pytest.raises(UserError, match=said):
        read_all(f"tfds:{folder}")


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    path = folder / "made-train.array_record-00000-of-00002"
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    with pytest.raises(UserError, match="leads out of"):
        tfds.partitions(f"tfds:{folder}")


def test_an_input_that_changed_is_another_one(folder):
    root = f"tfds:{folder}"
    before = tfds.inputs(root)
    assert tfds.inputs(root) == before
    info = folder / "dataset_info.json"
    info.write_text(info.read_text() + "\n")
    assert tfds.inputs(root) != before
    changed = tfds.inputs(root)
    os.utime(folder / "made-train.array_record-00000-of-00002", (1, 1))
    assert tfds.inputs(root) != changed
    assert tfds.inputs(f"{root}@train[:5]")["split"] == "train[:5]"


def test_without_the_package_a_line_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs the package tensorflow_datasets; install it .* -e .\[tfds\]"):
        tfds.inputs(f"tfds:{folder}")


def test_curation_begins_without_tfds_and_reads_it_without_tensorflow(folder):
    program = f"""
import sys
import data.curate.engine
assert "tensorflow_datasets" not in sys.modules
from data.sources import tfds
root = {f"tfds:{folder}"!r}
assert len([item for partition in tfds.partitions(root) for item in tfds.read(root, partition)]) == 10
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
