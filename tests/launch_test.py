"""The command line as a user meets it: the whole recipe, and every mistake in one line with exit code 2."""

import os
import shutil
import subprocess
import sys

import pytest

from core.files import read_json
from lab import ROOT, launch, make_corpus, smoke


def refused(result, message):
    """Exit code 2, one line, no traceback."""
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("launch.py: ")
    assert message in last
    assert "Traceback" not in result.stderr


def test_help_explains_verbs_and_exit_codes():
    result = launch("--help")
    assert result.returncode == 0
    for word in (
        "curate",
        "tokenize",
        "train",
        "eval",
        "generate",
        "serve",
        "report",
        "export",
        "143",
        "--config.data.path",
    ):
        assert word in result.stdout


def test_the_whole_recipe_leaves_everything_behind(finished):
    for name in (
        "curated/manifest.json",
        "tokenizer/tokenizer.model",
        "tokens/train-00000.array_record",
        "train/metrics.jsonl",
        "eval/eval.json",
        "report/report.html",
        "report/loss.png",
        "export/config.json",
        "export/model.safetensors",
        "export/tokenizer.json",
    ):
        assert (finished / name).stat().st_size > 0, name
    result = read_json(finished / "eval" / "eval.json")
    assert 0 < result["heldout"]["bits_per_byte"] < 8
    assert result["heldout"]["documents"] > 0
    assert set(result["compressors"]) == {"zlib -9", "xz -9e"}
    assert len(result["samples"]) == 4


def test_report_and_manifests_do_not_depend_on_how_values_were_typed(finished):
    page = (finished / "report" / "report.html").read_text()
    assert "they differ in" not in page


def test_stages_run_alone_and_text_goes_to_standard_output(finished, corpus):
    result = launch("generate", *smoke(finished, corpus), "--prompt=the model reads", "--max-tokens=8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the model reads")
    again = launch("generate", *smoke(finished, corpus), "--prompt=the model reads", "--max-tokens=8")
    assert again.stdout == result.stdout


def test_the_kernels_of_a_finished_run_may_be_others(finished, corpus):
    ask = ["generate", *smoke(finished, corpus), "--prompt=the model reads", "--max-tokens=8"]
    plain = launch(*ask, "--config.model.kernels.attention=reference")
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == launch(*ask).stdout
    refused(launch(*ask, "--config.model.kernels.attention=tpu"), "'tpu' does not run on cpu; choose from auto,")
    refused(launch(*ask, "--config.model.kernels.attention=flash"), "model.kernels.attention='flash' is not a choice")


def test_text_that_cannot_be_made_is_one_line(finished, corpus):
    refused(launch("generate", *smoke(finished, corpus), f"--prompt={'row ' * 99}"), "raise eval.context")
    refused(launch("generate", *smoke(finished, corpus), "--system=x"), "it needs --chat")
    refused(launch("generate", *smoke(finished, corpus), "--stop="), "a stop string is empty")
    refused(launch("generate", *smoke(finished, corpus), "--suffix=x"), "trained with objective.fill_in_the_middle")
    refused(launch("generate", *smoke(finished, corpus), "--config.eval.drafts=1"), "this model was trained without")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb trian; did you mean train?"),
        (["--confg=x"], "unknown argument --confg=x"),
        (["--config.train.stepz=3"], "unknown config key train.stepz; did you mean steps?"),
        (["--config.export.dtyp=bfloat16"], "unknown config key export.dtyp; did you mean dtype?"),
        (["generate", "--seed=99999999999"], "is not a whole number from 0 to 2,147,483,647"),
        (["--config.trian.steps=3"], "there is no group trian; did you mean train?"),
        (["--config.train.steps=many"], "config train.steps='many' must be an integer"),
        (
            ["--config.model.dtype=float16"],
            "config model.dtype='float16' is not a choice; did you mean bfloat16?",
        ),
        (["--config.model.num_heads=5"], "num_heads=5 is not a multiple of num_kv_heads=2"),
        (["--config=nowhere.py"], "--config=nowhere.py does not exist"),
        (["--config.data.path=/nowhere"], "data.path=/nowhere does not exist"),
        (["train"], "curated is not finished; run `launch.py curate`"),
        (["generate", "--max-tokens=x"], "--max-tokens: 'x' is not a whole number above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, message):
    refused(launch(f"--workdir={tmp_path / 'run'}", *arguments), message)


def test_a_value_with_spaces_is_a_value(tmp_path):
    refused(
        launch("--config.data.path=/no such/folder", f"--workdir={tmp_path}"),
        "data.path=/no such/folder does not exist",
    )


def test_an_optimiser_that_cannot_be_is_refused_before_anything_runs(corpus, tmp_path):
    result = launch(*smoke(tmp_path / "run", corpus, "--config.optim.optimizer=muom"))
    assert result.returncode == 2
    assert result.stderr == "launch.py: config optim.optimizer='muom' is not known; did you mean muon?\n"
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_cannot_be_is_refused_before_anything_runs(corpus, tmp_path):
    result = launch(*smoke(tmp_path / "run", corpus, "--config.mesh.tensor=7"))
    refused(result, "config mesh: tensor 7 is not the 1 devices")
    result = launch(*smoke(tmp_path / "run", corpus, "--config.train.microbatches=7"))
    refused(result, "a multiple of 7 is")
    assert not (tmp_path / "run").exists()


def test_of_several_processes_none_waits_for_what_cannot_be_trained(corpus, tmp_path):
    together = ("--coordinator=127.0.0.1:9", "--processes=2", "--process=0")
    result = launch(*smoke(tmp_path / "run", corpus, "--config.optim.optimizer=muom", *together))
    refused(result, "optim.optimizer='muom' is not known")
    assert not (tmp_path / "run").exists()


def test_a_single_verb_refuses_input_of_another_config(finished, corpus, tmp_path):
    for verb in ("tokenize", "train", "eval", "export", "generate", "report"):
        refused(launch(verb, *smoke(finished, tmp_path)), "data.path was")
    refused(launch("train", *smoke(finished, corpus, "--config.tokenizer.model=unigram")), "tokenizer.model was")


def test_debug_shows_the_traceback(tmp_path):
    result = launch(f"--workdir={tmp_path}", "--config.data.path=/nowhere", "--debug")
    assert "Traceback" in result.stderr
    assert result.returncode == 1


def test_a_workdir_of_another_config_is_refused_and_untouched(finished, corpus):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.json")}
    refused(launch(*smoke(finished, corpus, "--config.data.shards=3")), "data.shards was 4, is 3")
    refused(launch(*smoke(finished, corpus, "--config.model.d_ff=64")), "model.d_ff was 128, is 64")
    refused(launch(*smoke(finished, corpus, "--config.tokenizer.vocab_size=330")), "vocab_size was 320, is 330")
    refused(launch("generate", *smoke(finished, corpus, "--config.model.d_ff=64")), "model.d_ff was 128, is 64")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_rebuild_sets_the_old_run_aside(finished, corpus, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    result = launch("train", *smoke(workdir, corpus, "--config.train.steps=25", "--rebuild"))
    assert result.returncode == 0, result.stderr
    assert "attention: implementation 'xla', picked for cpu" in result.stderr.splitlines()
    assert read_json(workdir / "train" / "manifest.json")["summary"]["step"] == 25
    assert read_json(workdir / "train.stale-1" / "manifest.json")["summary"]["step"] == 24


def test_an_empty_corpus_and_one_too_small_for_the_vocabulary(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(launch(*smoke(tmp_path / "a", tmp_path / "empty")), "holds none of the files that are read")
    small = make_corpus(tmp_path / "small", files=3, sentences=4)
    refused(
        launch(*smoke(tmp_path / "b", small, "--config.tokenizer.vocab_size=4000")),
        "too small for tokenizer.vocab_size",
    )
    # and the same workdir goes on with a vocabulary that fits
    assert launch("tokenize", *smoke(tmp_path / "b", small)).returncode == 0


def test_undecodable_files_are_counted_not_fatal(tmp_path):
    corpus = make_corpus(tmp_path / "in")
    (corpus / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    assert launch("curate", *smoke(tmp_path / "run", corpus)).returncode == 0
    assert read_json(tmp_path / "run" / "curated" / "manifest.json")["summary"]["dropped"] == {"undecodable": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir_is_named(tmp_path, corpus):
    tmp_path.chmod(0o500)
    refused(launch(*smoke(tmp_path / "run", corpus)), "permission is denied")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; skipped where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_a_rerun_with_room_goes_on(small_disk, finished, corpus):
    result = launch(*smoke(small_disk / "run", corpus))
    refused(result, "no space is left on the disk")
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    result = launch(*smoke(small_disk / "run", corpus))
    assert result.returncode == 0, result.stderr
    ours, theirs = (read_json(run / "export" / "manifest.json")["summary"] for run in (small_disk / "run", finished))
    assert ours["weights"] == theirs["weights"]


def test_a_read_only_file_system_is_one_line(small_disk, corpus):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(launch(*smoke(small_disk / "run", corpus)), "the file system is read-only")


def test_importing_launch_is_light():
    """--help must not wait for JAX: nothing heavy is imported with it."""
    heavy = "{'jax', 'numpy', 'flax', 'pyarrow', 'ml_collections'}"
    code = f"import sys, launch; launch.parse_arguments([]); print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
