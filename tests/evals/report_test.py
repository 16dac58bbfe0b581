"""The report: whatever is missing is named, whatever is hostile stays text, whatever is unchanged is kept."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from core.config import parse
from core.files import fingerprint
from core.page import printable
from data.config import BatchConfig
from evals import draw, figures
from evals.found import read
from evals.report import report
from model.config import ModelConfig
from optim.config import OptimConfig
from scaling.here import predict
from train.config import MeshConfig, TrainConfig
from train.run import Run

SOURCES = {
    "books $x_1$": {"train_documents": 9, "train_bytes": 9000, "dropped:too_short": 2},
    "<b>web</b>": {"train_documents": 5, "train_bytes": 500, "heldout_documents": 2, "heldout_bytes": 200},
}
MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "d_model": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "d_ff": 16,
}
CONFIG = {
    "name": "tiny",
    "seed": 0,
    "model": dict(MODEL),
    "batch": {"rows": 4, "row_length": 32},
    "optim": {"warmup_steps": 5},
    "train": {"steps": 60},
    "data": {"path": None},
}
HOSTILE = "</span></pre><script>alert('x')</script>\x00\ud800\n    return \"a\" < b & c\n\n\tend"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def stage(workdir, name, spec, summary, complete=True):
    write(
        workdir / name / "manifest.json",
        {"spec": spec, "complete": complete, "files": {}, "summary": summary},
    )


def shard(split):
    return {"name": f"{split}-00000.array_record", "hash": f"hash-{split}", "tokens": 30, "bytes": 90}


def metrics(steps):
    rows = [{"step": 3, "heldout_bits_per_byte": 3.5, "seconds": 0.5}]  # before its loss, as after a kill
    for step in range(1, steps + 1):
        rates = {"tokens_per_second": 1e3 if step % 20 else 1e9, "seconds": step / 2}
        values = {"loss": 4 / step + 2, "learning_rate": 1e-3, "grad_norm": 1.0, "max_logit": 5.0}
        spent = {"seconds_setup": 2.0, "seconds_step": step / 2, "seconds_data": 0.0, "seconds_rework": 8.0}
        rows.append({"step": step, **values, "tokens": 128 * step, **rates, **(spent if step % 9 else {})})
    return "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "lo'


@pytest.fixture
def workdir(tmp_path):
    return make_workdir(tmp_path / "run")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of a whole run, for the tests that only look."""
    return page(make_workdir(tmp_path_factory.mktemp("report") / "run"))


def make_workdir(folder):
    totals = {"train": {"documents": 14, "bytes": 9500}, "heldout": {"documents": 2, "bytes": 200}}
    curated = {
        **totals,
        "sources": SOURCES,
        "dropped": {"too_short": 2},
        "hashes": {"train-00000.parquet": "abc"},
    }
    stage(folder, "curated", {}, curated)
    drop = {"id": "<i>first</i>", "source": "books $x_1$", "reason": "too_short", "size": 7}
    lines = [json.dumps(drop), json.dumps({**drop, "id": "second", "size": 1})]
    (folder / "curated" / "dropped.jsonl").write_text("\n".join(lines) + "\n")
    stage(folder, "tokenizer", {}, {"vocab_size": 64})
    splits = {split: {**totals[split], "tokens": 3000, "shards": [shard(split)]} for split in totals}
    stage(folder, "tokens", {}, {**splits, "vocab_size": 64, "not_lossless": 1})
    spec = {"model": MODEL, "optim": {"clip_norm": 1.0, "warmup_steps": 5}}
    stage(folder, "train", spec, {"step": 60})
    write(folder / "train" / "history.json", history(60))
    (folder / "train" / "metrics.jsonl").write_text(metrics(60))
    counts = {"documents": 2, "bytes": 200, "bits_per_byte": 1.5}
    heldout = {**counts, "tokens": 90, "nats_per_token": 2.1, "window": 32, "stride": 16}
    others = {name: {"each_document": 2.0, "one_stream": 1.8} for name in ("zlib -9", "xz -9e")}
    samples = [
        {"document": "<u>id</u>", "prompt": HOSTILE, "text": HOSTILE},
        {"document": None, "prompt": "", "text": ""},
    ]
    heldout["by_source"] = {"<b>web</b>": counts}
    result = {"step": 60, "heldout": heldout, "compressors": others, "samples": samples}
    stage(folder, "eval", {}, {})
    write(folder / "eval" / "eval.json", result)
    return folder


def test_compute_is_of_all_that_the_objectives_do(workdir):
    """A teacher's forward pass, and the passes of the output layer for its distributions and for further tokens."""
    path = workdir / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    plain = read(CONFIG, workdir).flops_per_token(32)
    model = ModelConfig(**MODEL)
    assert plain == model.flops_per_token(32)
    trained = {"objective": {"multi_token": {"trunk": [0.5]}}, "teacher": {"model": {**MODEL, "num_layers": 5}}}
    path.write_text(json.dumps({**manifest, "spec": {**manifest["spec"], **trained}}))
    teacher = dataclasses.replace(model, num_layers=5).flops_per_token(32) / 3
    assert read(CONFIG, workdir).flops_per_token(32) == pytest.approx(plain + teacher + 2 * 6 * 64 * 8)


def history(steps):
    stage = {"steps": steps, "rows": 4, "row_length": 32, "packing": "split", "mixture": {}}
    records = [{"step": 0, "stages": [stage], "max_epochs": {}, "documents": [], "skip": 0}]
    return {"records": records, "fingerprint": fingerprint(records)}


def page(workdir, config=CONFIG, **options):
    return report(config, workdir, **options).read_text(encoding="utf-8")


def test_the_page_says_what_was_measured(text):
    assert "<strong>1.500 bits per byte</strong>, 25% fewer than xz -9e needs" in text
    assert "for 60 steps on 7.68k tokens, 2.6 epochs over 9.5 kB of text" in text
    assert "1 of 16 documents do not decode to themselves" in text
    row = '<code>too_short</code></td><td class="number">2</td><td class="number">8</td>'
    assert f"{row}<td><code>&lt;i&gt;first&lt;/i&gt;</code>" in text
    assert "▲ 3 above the axis" in text
    assert 'class="notice"' not in text  # nothing is missing, unfinished or of another config
    assert "--config=FILE" in text


def test_a_model_worse_than_xz_is_said_to_be(workdir):
    path = workdir / "eval" / "eval.json"
    path.write_text(path.read_text().replace('"bits_per_byte": 1.5', '"bits_per_byte": 3.0'))
    assert "50% more than xz -9e needs" in page(workdir)


def test_goodput_is_that_of_the_last_row_that_has_it(text):
    section = text.partition('<h2 id="goodput">')[2].partition("<h2")[0]
    assert "<strong>75.0% of 40 s went into steps</strong>" in section
    cells = '<td>steps lost by a kill and done again</td><td class="number">8.000</td><td class="number">20.000</td>'
    assert cells in section
    assert "done again 20.0%</text>" in section
    assert "waiting for data 0" not in section  # in the table only


def test_every_head_is_drawn_where_the_run_kept_them(workdir):
    """The threshold is the line; thousands of heads take a few paths."""
    path = workdir / "train" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    random = np.random.default_rng(0)
    for row in rows[5:]:
        row["max_logit_LN"] = (random.random((36, 32)) * row["step"]).round(2).tolist()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((workdir / "train" / "manifest.json").read_text())
    manifest["spec"]["optim"]["qk_clip"] = {"threshold": 50.0}
    write(workdir / "train" / "manifest.json", manifest)
    text = page(workdir)
    drawing = text[text.index('aria-label="Largest attention logit of every head"') :].partition("</svg>")[0]
    assert "clip 50</text>" in drawing
    assert "Every head at step 60; full blue is 50</text>" in drawing
    assert len(drawing) < 200_000
    assert re.findall(r"(?:fill|stroke): (?!none|var\(--)[^;\"]*", drawing) == []


def test_metrics_without_goodput_are_said_to_have_none(workdir):
    path = workdir / "train" / "metrics.jsonl"
    path.write_text(re.sub(r', "seconds_\w+": [\d.]+', "", path.read_text()))
    text = page(workdir)
    assert "The metrics of this run do not say where its time went." in text
    assert text.count("<svg") == 12


def test_text_of_the_model_and_the_data_stays_text(text):
    assert not re.search(r"<(script|i|b|u)>", text)
    shown = printable(HOSTILE).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = shown.replace('"', "&quot;").replace("'", "&#x27;")
    assert f'<span class="given">{shown}</span><span class="made">{shown}</span></pre>' in text
    assert "books $x_1$</text>" in text
    assert "&lt;b&gt;web&lt;/b&gt;</text>" in text


def test_nothing_is_fetched(text):
    assert not re.search(
        r"https?:|@import|url\((?!#)|\b(src|srcset)=|<(script|link (?!rel=\"icon\" href=\"data:))", text
    )
    assert not re.search(r'href="(?!#|data:,")', text)


def test_ids_are_unique_and_references_arrive(text):
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert text.count("<svg") == 14
    assert len(ids) == len(set(ids))
    assert {*re.findall(r'href="#([^"]*)"', text), *re.findall(r"url\(#([^)]*)\)", text)} <= set(ids)


def test_figures_follow_the_theme(text):
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert 'role="img" aria-label=' in drawing
        assert re.findall(r"(?:fill|stroke): (?!none|var\(--)[^;\"]*", drawing) == []


@pytest.mark.parametrize(
    ("folder", "verb"), [("curated", "curate"), ("tokens", "tokenize"), ("train", "train"), ("eval", "eval")]
)
def test_a_missing_stage_is_named_with_its_verb(workdir, folder, verb):
    shutil.rmtree(workdir / folder)
    assert f"Nothing here yet: <code>launch.py {verb}</code> makes it." in page(workdir)


def test_an_empty_workdir_makes_a_page(tmp_path):
    text = page(tmp_path / "new", {})
    assert text.count("Nothing here yet") == 8
    assert "<h1>new</h1>" in text


def test_unfinished_training_is_said_first(workdir):
    path = workdir / "train" / "manifest.json"
    write(path, {"spec": json.loads(path.read_text())["spec"], "complete": False})
    write(path.with_name("history.json"), history(90))
    write(
        workdir / "eval" / "eval.json",
        {**json.loads((workdir / "eval" / "eval.json").read_text()), "step": 40},
    )
    top = page(workdir).partition("<h2")[0]
    assert "Training is not finished: step 60 of 90" in top
    assert "The evaluation is of step 40, training has reached 60" in top
    assert "they differ in <code>stages[0].steps was 90, is 60</code>" in top


def test_another_config_is_noticed(workdir):
    changed = {**CONFIG, "model": {**MODEL, "d_ff": 32}}
    assert "they differ in <code>model.d_ff</code>" in page(workdir, changed)


def test_a_group_of_keys_given_in_part_is_no_other_config(workdir):
    path = workdir / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["spec"]["optim"]["qk_clip"] = {"threshold": 100.0, "treatment": "query"}
    write(path, manifest)
    assert "they differ in" not in page(workdir, {**CONFIG, "optim": {"qk_clip": {"threshold": 100}}})
    changed = {**CONFIG, "optim": {"qk_clip": {"threshold": 30.0}}, "objective": {"z_loss": 1e-4}}
    assert "they differ in <code>objective.z_loss, optim.qk_clip</code>" in page(workdir, changed)

    off = {
        "model": {"multi_token": {"tokens": 1}},
        "objective": {"targets": {"weight": 0.0}, "distill": {"teacher": ""}},
    }
    assert "they differ in" not in page(workdir, {**CONFIG, **off})
    asked = {"model": {"multi_token": {"tokens": 3}}, "objective": {"targets": {"weight": 0.5}}}
    assert "they differ in <code>model.multi_token, objective.targets</code>" in page(workdir, {**CONFIG, **asked})


def test_the_command_is_one_to_paste(workdir):
    shown = page(workdir, command="python launch.py --workdir='my run' --config.a=1")
    assert "python launch.py \\\n    &#x27;--workdir=my run&#x27; \\\n    --config.a=1" in shown


def test_loss_png_is_a_png(workdir):
    data = (report(CONFIG, workdir).parent / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")


def test_an_unchanged_report_is_kept_and_a_changed_one_made_anew(workdir):
    path = report(CONFIG, workdir)
    first = path.stat().st_ino, path.stat().st_mtime_ns
    report(CONFIG, workdir)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == first
    (workdir / "train" / "metrics.jsonl").write_text(metrics(50))
    assert "for 50 steps" in page(workdir)


def test_the_same_inputs_give_the_same_page(workdir):
    first = page(workdir)
    shutil.rmtree(workdir / "report")
    assert page(workdir) == first


def test_smoothing_keeps_levels_and_the_first_value():
    np.testing.assert_allclose(figures.smooth(np.full(100, 3.0)), 3.0)
    noise = np.random.default_rng(0).normal(size=400)
    smoothed = figures.smooth(noise)
    assert smoothed[0] == pytest.approx(noise[0])
    assert smoothed[20:].std() < noise.std() / 2


def test_the_report_of_the_curation_is_found_beside(text, tmp_path):
    assert "../curated/report.html" not in text
    folder = make_workdir(tmp_path / "run")
    (folder / "curated" / "report.html").write_text("")
    assert '<a href="../curated/report.html">' in page(folder)


def test_many_sources_are_added_up():
    counts = {f"s{i}": {"train_bytes": 1000 * (i + 1), "train_documents": 1} for i in range(40)}
    drawing = draw.svg(figures.sources(counts), "many", "sources")
    assert "29 others</text>" in drawing
    assert "435 kB</text>" in drawing  # 1 + 2 + ... + 29
    assert "s40" not in drawing


SETTINGS = {"remat": "full", "dtype": "bfloat16", "microbatches": 2, "offload_optimizer": False}
PLAN = {
    "source": "compiled",
    "topology": {"name": "v5e:2x2", "devices": 4, "device_kind": "TPU v5 lite"},
    "mesh": {"fsdp": 4},
    "settings": SETTINGS,
    "stage": {"number": 0, "rows": 4, "row_length": 32},
    "time": {"total": 0.1},
    "memory": {"total": 2e9},
}
AS_PLANNED = {
    **CONFIG,
    "model": {**CONFIG["model"], "remat": "full", "dtype": "bfloat16"},
    "train": {**CONFIG["train"], "microbatches": 2, "offload_optimizer": False},
}


PLAN["trains"] = fingerprint({name: AS_PLANNED[name] for name in ("model", "optim")})


def trained_on(workdir, kind, number, **mesh):
    """As the run says of devices that are not here."""
    axes = dict.fromkeys(("replica", "fsdp", "tensor", "context", "expert"), 1) | (mesh or {"fsdp": number})
    write(workdir / "train" / "devices.json", {"device_kind": kind, "devices": number, "slices": 1, "mesh": axes})


def with_memory(workdir):
    path = workdir / "train" / "metrics.jsonl"
    rows = [json.loads(line) | {"memory_peak_bytes": 3_000_000_000} for line in path.read_text().splitlines()[:-1]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_planned_and_measured_stand_side_by_side(workdir):
    """Of the devices that the run was trained on, wherever its report is made."""
    write(workdir / "plan" / "plan.json", PLAN)
    with_memory(workdir)
    trained_on(workdir, "TPU v5 lite", 4)
    text = page(workdir, AS_PLANNED)  # 128 tokens a step, a thousand a second
    assert "<td>seconds a step</td><td>0.1</td><td>0.128</td><td>1.28</td>" in text
    assert "<td>tokens a second</td><td>1,280</td><td>1,000</td><td>0.78</td>" in text
    assert "<td>memory of one device</td><td>2 GB</td><td>3 GB</td><td>1.50</td>" in text


@pytest.mark.parametrize(
    ("kind", "number", "mesh", "config", "why_not"),
    [
        ("TPU v4", 8, {}, AS_PLANNED, "is of 4 x TPU v5 lite, the run was of 8 x TPU v4."),
        ("TPU v5 lite", 4, {"tensor": 4}, AS_PLANNED, "the run was of mesh {&#x27;tensor&#x27;: 4}."),
        ("TPU v5 lite", 4, {}, AS_PLANNED | {"train": CONFIG["train"]}, "the run was of settings {"),
        ("TPU v5 lite", 4, {}, AS_PLANNED | {"optim": {"b2": 0.9}}, "is of another model or optimiser."),
    ],
)
def test_a_plan_of_something_else_is_not_compared(workdir, kind, number, mesh, config, why_not):
    write(workdir / "plan" / "plan.json", PLAN)
    trained_on(workdir, kind, number, **mesh)
    text = page(workdir, config, predict=lambda on: {"seconds": 0.064 * on["devices"] / number * 4, "bytes": 1e9})
    assert why_not in text
    assert "<td>seconds a step</td><td>0.256</td><td>0.128</td><td>0.50</td>" in text
    assert f"Planned from shapes alone for {number} x {kind}" in text
    assert "does not say how much memory it holds" in text


def test_a_plan_of_a_stage_that_the_run_has_not_is_not_compared(workdir):
    write(workdir / "plan" / "plan.json", PLAN | {"stage": PLAN["stage"] | {"number": 1}})
    trained_on(workdir, "TPU v5 lite", 4)
    assert "The plan of this workdir is of stage 2, the run has 1." in page(workdir, AS_PLANNED)


def test_without_a_known_peak_only_the_measured_is_shown(workdir):
    trained_on(workdir, "cpu", 1)
    text = page(workdir, predict=lambda _: None)
    assert "No peak is known of the devices of this run (1 x cpu)" in text
    assert "<td>seconds a step</td><td>-</td><td>0.128</td><td>-</td>" in text


def test_a_run_that_does_not_say_its_devices_is_shown_as_measured(text):
    assert "does not say what devices it was trained on" in text
    assert "<td>seconds a step</td><td>-</td><td>0.128</td><td>-</td>" in text


def test_shapes_say_what_a_run_on_a_mesh_takes(workdir):
    """Also where the mesh asked for is not the devices of this process."""
    run = lab_run(MeshConfig(tensor=2))
    trained_on(workdir, "TPU v5 lite", 4, fsdp=2, tensor=2)
    found = predict(run, json.loads((workdir / "train" / "devices.json").read_text()))
    assert found["seconds"] > 0
    assert found["bytes"] > 12 * run.model.num_parameters / 4  # a quarter of parameters and moments


def lab_run(mesh):
    model = ModelConfig(512, num_layers=2, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=256)
    return Run(
        model, BatchConfig(rows=8, row_length=64), OptimConfig(warmup_steps=1), TrainConfig(steps=10), 0, mesh=mesh
    )


def test_the_schedule_is_drawn_before_anything_is_trained(tmp_path):
    """Of every stage and group; one that training will refuse is told, not drawn."""
    own = {
        "learning_rate": 0.01,
        "warmup_steps": 10,
        "groups": {"embedding": {"multiplier": 0.3}},
        "schedule": {"decay": "1-sqrt", "final": 0.1, "batch": "sqrt"},
    }
    stages = [{"tokens": 4 * 32 * 40}, {"tokens": 16 * 32 * 20, "rows": 16}]
    config = {**CONFIG, "train": {"steps": 0}, "optim": own, "batch": {**CONFIG["batch"], "stages": stages}}
    (tmp_path / "run").mkdir()
    text = page(tmp_path / "run", config)
    assert "Learning rate over 60 steps, at most 0.02; embedding x 0.3" in text
    assert (
        "10 steps of warm-up, 1-sqrt decay to 0.1 of the rate; the rate follows the tokens of a step (sqrt)" in text
    )
    row = ['<td class="number">2</td>', '<td class="number">41</td>', '<td class="number">60</td>']
    assert "".join(row[1:]) + '<td class="number">512</td>' in text
    text = page(tmp_path / "run", {**config, "optim": {**own, "warmup_steps": 59}})
    assert "warmup_steps=59 and a decay over the last 7 do not fit into train.steps=60" in text


def test_a_group_that_was_trained_so_is_no_difference(workdir):
    """What the config leaves out of a group of keys has its default."""
    asked = {"schedule": {"final": 0.1}, "groups": {"norm": {"multiplier": 0.5}}}
    path = workdir / "train" / "manifest.json"
    spec = {"model": MODEL, "optim": json.loads(json.dumps(dataclasses.asdict(parse(OptimConfig, asked, "optim"))))}
    path.write_text(json.dumps({**json.loads(path.read_text()), "spec": spec}))
    assert "they differ in" not in page(workdir, {**CONFIG, "optim": asked})
    assert "they differ in <code>optim.schedule" in page(workdir, {**CONFIG, "optim": {"schedule": {"final": 0.2}}})
