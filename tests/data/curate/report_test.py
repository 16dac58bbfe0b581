"""The curation report: its numbers add up, are the same however they were counted, and hostile text stays text."""

import contextlib
import html.parser
import json
import re

import pytest

from core.files import read_json
from curate_lab import make_documents
from data.config import DataConfig
from data.curate import engine, partition
from data.curate.browser import plain, shown
from data.curate.figures import NARROW, WIDE, flow
from data.curate.report import write_report
from data.curate.tally import PartTally, Tally
from data.document import Document, read_documents
from lab import make_corpus

HOSTILE = (
    "<script>alert(1)</script></pre></details>\x00\x1b \u202egnp.exe\u202c zero\u200bwidth \U000e0041 \U0001f600"
)


RECIPE = (
    {"step": "length", "min_chars": 20},
    {"step": "curate_lab:Questions"},
    {"step": "curate_lab:Shorten"},
    {"step": "exact_duplicates"},
)


def curate(folder, workdir, **changes):
    given = {"path": str(folder), "recipe": RECIPE, "shards": 2, "heldout_fraction": 0.2, "workers": 1, **changes}
    engine.curate(DataConfig(**given), workdir)
    return read_json(workdir / "curated" / "report.json"), read_json(workdir / "curated" / "samples.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_documents(tmp_path_factory.mktemp("in") / "corpus")


@pytest.fixture(scope="module")
def curated(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report")
    return (*curate(folder, workdir), workdir / "curated")


def test_documents_and_bytes_add_up(curated):
    report, _, where = curated
    names = [step["step"] for step in report["steps"]]
    assert names == ["", "length", "curate_lab:Questions", "curate_lab:Shorten", "exact_duplicates"]
    for unit in ("documents", "bytes"):
        assert report["steps"][0][unit][0] == report["read"][unit]
        assert report["steps"][-1][unit][1] == report["kept"][unit]
        for step, following in zip(report["steps"], report["steps"][1:]):
            assert step[unit][1] == following[unit][0]
            lost = step[unit][0] - step[unit][1] - sum(one[unit] for one in step["dropped"])
            assert lost == 0 or (unit == "bytes" and step["step"] == "curate_lab:Shorten" and lost > 0)
    dropped = [json.loads(line) for line in (where / "dropped.jsonl").read_text().splitlines()]
    counted = {(step["step"], one["reason"]): one["documents"] for step in report["steps"] for one in step["dropped"]}
    assert sum(counted.values()) == len(dropped)
    assert counted["", "not_json"] == 3
    assert counted["length", "too_short"] == 1
    assert counted["curate_lab:Questions", "asks"] == 43
    assert report["steps"][3]["changed"] == report["steps"][3]["documents"][0] == 301 - 43 - 24 - 1


def test_what_stays_is_described(curated):
    report, _, _ = curated
    kept = report["kept"]["documents"]
    assert report["languages"]["kept"]["names"] == [["en", kept, report["kept"]["bytes"]]]
    assert sum(number for name, number, _ in report["languages"]["dropped"]["names"] if name == "") == 43 + 24 + 1
    assert {name for name, *_ in report["hosts"]["names"]} == {"", *(f"host{number}.org" for number in range(5))}
    assert report["hosts"]["distinct"] == 5
    assert 2.2 < report["hosts"]["entropy"] < 2.33  # five hosts nearly alike: log2 of 5
    assert {name for name, *_ in report["licenses"]["names"]} == {"", "CC0"}
    for numbers in (report["lengths"], report["scores"]["tidy_score"]):
        assert sum(count for _, count in numbers["kept"]) == kept
    assert {number for number, _ in report["scores"]["tidy_score"]["kept"]} <= set(range(18))
    copies = sum((size - 1) * number for size, number in report["duplicates"]["exact_duplicates"])
    assert copies == report["steps"][-1]["dropped"][0]["documents"] > 0


def test_samples_keep_licence_source_and_text(curated):
    _, samples, where = curated
    groups = {(group["kind"], group["step"], group["reason"]): group for group in samples}
    asks = groups["dropped", "curate_lab:Questions", "asks"]
    assert len(asks["samples"]) == 8
    assert asks["of"] == 43
    assert all(one["text"].endswith("?") and one["source"] == "jsonl" for one in asks["samples"])
    kept = groups["kept", "", ""]["samples"]
    assert len(kept) == 24
    assert all(one["license"] == "CC0" for one in kept if int(one["id"][1:]) % 2)
    assert all(one["values"].keys() == {"tidy_score"} for one in kept)
    for one in groups["changed", "curate_lab:Shorten", ""]["samples"]:
        assert re.sub(r"\d", "", one["before"]) == one["text"] != one["before"]
    copies = groups["dropped", "exact_duplicates", "exact_duplicate"]["samples"]
    documents = {d.id: d for path in where.glob("*.parquet") for d in read_documents(path)}
    assert all(documents[one["kept"]].text == one["text"] for one in copies)  # the id of the one that stays
    assert [one["kept"] for one in copies] == list(dict.fromkeys(one["kept"] for one in copies))
    assert groups["dropped", "", "not_json"]["samples"][0] == {"id": "1.jsonl:101", "source": "jsonl", "bytes": 10}
    assert [group["kind"] for group in samples] == ["dropped"] * 5 + ["changed", "kept"]


@pytest.mark.parametrize(("workers", "rows", "chars"), [(2, 256, 64 << 20), (1, 7, 64 << 20), (1, 256, 900)])
def test_workers_and_batches_do_not_show(folder, curated, tmp_path, monkeypatch, workers, rows, chars):
    monkeypatch.setattr("data.sources.folder.FILES_PER_PARTITION", 1)
    monkeypatch.setattr(partition, "BATCH_ROWS", rows)
    monkeypatch.setattr(partition, "RUN_CHARS", chars)
    assert curate(folder, tmp_path, workers=workers) == curated[:2]
    for name in ("report.json", "samples.json", "report.html"):
        assert (tmp_path / "curated" / name).read_bytes() == (curated[2] / name).read_bytes()


def test_an_interrupted_run_reports_the_same(folder, curated, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curate(folder, tmp_path)
    assert curate(folder, tmp_path) == curated[:2]


@pytest.mark.parametrize("older", ["tally", "dropped"])
def test_parts_of_an_older_version_are_made_again(folder, curated, tmp_path, monkeypatch, older):
    """Of one that counted nothing, and of one that had what was dropped in the mark itself."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            curate(folder, tmp_path)
    (mark,) = (tmp_path / "curated" / "parts").glob("*.json")
    part = read_json(mark)
    if older == "tally":
        del part["tally"]
    else:
        part["dropped"] = []
    mark.write_text(json.dumps(part))
    assert curate(folder, tmp_path) == curated[:2]


class Reader(html.parser.HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.scripts, self.ids, self.events = [], [], 0, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.scripts += tag == "script"
        given = dict(attrs)
        self.links += [given["href"]] if "href" in given and tag == "a" else []
        self.ids += [given["id"]] if "id" in given else []
        self.events += [name for name in given if name.startswith("on")]


def page_of(tmp_path, documents, recipe=({"step": "length", "min_chars": 1},), **changes):
    """Curates JSON lines; the page as text."""
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    curate(root, tmp_path / "w", recipe=recipe, **changes)
    return (tmp_path / "w" / "curated" / "report.html").read_text(encoding="utf-8")


ADDRESSES = (
    "javascript:alert(1)//",
    "https://[",
    "data:text/html,",
    "HTTPS://x.org/\t",
    "\u202ehttps://x.org/",
    "//x.org",
)


def test_hostile_documents_stay_text(tmp_path):
    """In texts that are kept, dropped or changed, in addresses, ids, languages and licences."""
    documents = [
        {
            "id": f'{number}"><b onload=x>',
            "url": url + HOSTILE,
            "text": f"{HOSTILE} {number} {'x' * (number // 4)} " * (8 if number % 2 else 1),
            "language": HOSTILE,
            "license": HOSTILE,
        }
        for number, url in enumerate(ADDRESSES * 4)
    ]
    documents.append({"text": HOSTILE * 9, "url": 'https://x.org/"><b onload=x>'})
    recipe = ({"step": "length", "min_chars": 200}, {"step": "curate_lab:Shorten"}, {"step": "exact_duplicates"})
    text = page_of(tmp_path, documents, recipe)
    found = Reader(text)
    assert found.scripts == 1  # the page's own
    assert not found.events
    assert {"b", "img", "iframe", "object"}.isdisjoint(found.tags)
    assert {link.partition(":")[0].lower() for link in found.links if not link.startswith("#")} == {"https"}
    assert {"\u202e", "\u200b", "\x1b", "\x00", "\U000e0041"}.isdisjoint(text)
    assert "U+202E" in text
    assert "\U0001f600" in text
    assert text.count("&lt;script&gt;alert(1)") > 20


def test_the_pages_own_script_is_the_only_one_allowed(curated):
    text = (curated[2] / "report.html").read_text(encoding="utf-8")
    assert re.search(r"default-src 'none'[^\"]*; script-src 'sha256-[\w+/]{43}='\"", text)
    assert not re.search(r"""(?:src|action|srcset)=|url\(|@import|<(?:link|iframe|object)[^>]+https?:""", text)


def test_every_reason_leads_to_its_samples(curated):
    found = Reader((curated[2] / "report.html").read_text(encoding="utf-8"))
    targets = [link[1:] for link in found.links if link.startswith("#")]
    assert set(targets) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert len({target for target in targets if target.startswith("sample-")}) == 6  # five reasons and a change


def test_reasons_that_differ_in_signs_alone_have_samples_of_their_own(tmp_path):
    with open_tally(tmp_path) as tally:
        for number, reason in enumerate(("太短", "太长", "a-b", "a b")):
            tally.drop(Document(f"d{number}", f"text {number}", "jsonl"), "my:Step", reason)
        tally.keep(Document("kept", "text that stays", "jsonl"), "train")
        write_report(tmp_path, tally, DataConfig(path="x.jsonl"))
    found = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(found.ids) == len(set(found.ids))
    assert len([one for one in found.ids if one.startswith("sample-")]) == 5


@contextlib.contextmanager
def open_tally(folder):
    """One to which no partition has been added but an empty one."""
    with (folder / "dropped.jsonl").open("w") as file:
        tally = Tally(file)
        tally.add_part({"tally": PartTally(()).plain()}, [])
        yield tally


def test_a_near_duplicate_is_shown_with_the_one_that_stays(tmp_path):
    """What the merge is told of clusters: a sample of each, and how large they are."""
    with open_tally(tmp_path) as tally:
        for number in range(30):
            kept = "first" if number < 20 else "second"
            tally.drop(Document(f"d{number}", f"text {number}", "warc"), "minhash", "near_duplicate", kept=kept)
        tally.keep(Document("first", "text that stays", "warc"), "train")
        numbers, samples = write_report(tmp_path, tally, DataConfig(path="x.jsonl"))
    (group, _) = read_json(samples)
    assert sorted(one["kept"] for one in group["samples"]) == ["first", "second"]
    assert group["of"] == 30
    assert read_json(numbers)["duplicates"]["minhash"] == [[11, 1], [21, 1]]
    assert "In its place stays" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_little_is_told_well(tmp_path):
    """Two documents, nothing dropped, no address, no language."""
    text = page_of(tmp_path, [{"text": f"document {number} of two"} for number in range(2)], heldout_fraction=1e-6)
    for said in ("Nothing was dropped.", "No document was dropped.", "none was given", "No duplicates were found"):
        assert said in text
    assert "no web address" in text
    assert "nan" not in text


def test_conversations_are_shown_as_they_are_judged(tmp_path):
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"Say {number}"},
                {"role": "assistant", "content": f"It is {number}"},
            ]
        }
        for number in range(4)
    ]
    text = page_of(tmp_path, [*talks, {"messages": [{"role": "user", "content": "alone"}]}], heldout_fraction=0.3)
    assert "user: Say 1\n\nassistant: It is 1" in text
    assert "no_assistant" in text
    assert "4 of them are conversations" in text


def many_steps(count=12, reasons=30):
    """As many as a long recipe has, some of them with long names."""
    left, steps = 1_000_000, []
    for number in range(count):
        own = [
            {"reason": f"reason_{number}_{k}_" + "long" * (k % 9), "documents": 9**k % 5000 + 1, "bytes": 9**k}
            for k in range(number % (2 * reasons // count + 1) + 1)
        ]
        own.sort(key=lambda one: -one["documents"])
        gone = sum(one["documents"] for one in own)
        steps.append(
            {"step": f"step_{number}", "documents": [left, left - gone], "bytes": [left, left], "changed": 5,
             "dropped": own, "other_reasons": [0, 0, 0]}
        )  # fmt: skip
        left -= gone
    return steps


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_labels_of_the_flow_do_not_overlap(width):
    """Of each column, lines of text are at least their height apart, and end within the picture."""
    drawing = flow(many_steps(), "documents", "kept", width)
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"( text-anchor="end")?[^>]*>(.*?)</text>', drawing)
    assert len(found) > 12 + 30
    columns = {}
    for x, y, ends_there, words in found:
        columns.setdefault(x, []).append(float(y))
        letters = len(re.sub(r"<[^>]+>", "", words))
        assert ends_there or float(x) + 6.8 * letters + 9 < width, words  # 6.8 pixels a letter, 9 between words
    for heights in columns.values():
        assert all(below - above >= 15 for above, below in zip(sorted(heights), sorted(heights)[1:]))


def test_widths_of_the_flow_are_to_scale():
    step = {"step": "s", "documents": [400, 100], "bytes": [4, 4], "changed": 0, "other_reasons": [0, 0, 0]}
    step["dropped"] = [{"reason": "a", "documents": 200, "bytes": 0}, {"reason": "b", "documents": 100, "bytes": 0}]
    drawing = flow([step], "documents", "kept", WIDE)
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="[\d.]+" class="stays', drawing)]
    thick = [float(height) for height in re.findall(r'height="([\d.]+)" class="goes"', drawing)]
    assert widths == [100, 100]  # of 400 pixels
    assert thick == [200, 100]


def test_signs_in_the_place_of_what_is_not_seen():
    assert shown("a\u202eb<") == 'a<span class="sign">U+202E</span>b&lt;'
    assert plain("a\ufeffb") == "a[U+FEFF]b"
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f4bb"
    assert shown(joined) == joined  # a word of Persian and a picture of two need theirs


def test_the_data_of_the_report_is_part_of_the_stage_and_its_page_is_not(curated):
    files = read_json(curated[2] / "manifest.json")["files"]
    assert {"report.json", "samples.json"} <= files.keys()
    assert "report.html" not in files


def test_a_page_that_was_deleted_is_drawn_again_and_nothing_else_is_made(folder, curated, tmp_path, capsys):
    curate(folder, tmp_path)
    where = tmp_path / "curated"
    (where / "report.html").unlink()
    before = {path: path.stat().st_mtime_ns for path in where.iterdir()}
    assert curate(folder, tmp_path) == curated[:2]
    assert "report.html is drawn again" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (where / "report.html").read_bytes() == (curated[2] / "report.html").read_bytes()


def test_a_corpus_of_texts_has_a_report(tmp_path):
    report, samples = curate(make_corpus(tmp_path / "in") / "..", tmp_path / "w", recipe=RECIPE[:1])
    assert report["input"] == tmp_path.name
    assert [group["kind"] for group in samples] == ["kept"]
