import json

import numpy as np
import pytest

from core.errors import UserError
from curate_lab import OWN_STEP, write_archive, write_lists
from data.config import DataConfig
from data.curate import engine
from data.curate.partition import through, to_batch
from data.curate.recipe import build_recipe
from data.curate.url import ARCHIVE, UrlFilter
from data.document import Document, read_documents

pytest.importorskip("tldextract")


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A folder of small lists, as datatrove's are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "lists"
    folder.mkdir()
    write_lists(folder, "# comment\nbad.com\nsub.fine.org\nbad.co.uk\n", "http://fine.org/bad page\n")
    return folder


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://good.com/page", None),
        ("http://bad.com/page", "domain"),
        ("https://www.bad.com:80/", "domain"),
        ("https://x.bad.co.uk/", "domain"),
        ("http://sub.fine.org/x", "subdomain"),
        ("http://other.fine.org/x", None),
        ("http://fine.org/bad page", "url"),
        ("http://good.com/online-casino", "hard_blacklisted"),
        ("http://good.com/online-Casino", None),  # words are compared as they are written
        ("http://good.com/poker/bet", "soft_blacklisted"),
        ("http://good.com/poker/poker", None),
        ("http://good.com/get-Free_Stuff-now", "blacklisted_subword"),
        ("http://10.0.0.1/", None),
        ("http://[", None),
        ("", None),
        ("corpus/casino.html", None),  # a file here, not a page
        ("casino.md", None),
    ],
)
def test_addresses_are_refused_for_datatroves_reasons(lists, url, reason):
    documents = [Document("a", "text", "", url)]
    _, dropped = through({"url_filter": UrlFilter(lists=str(lists))}, to_batch(documents))
    assert [one.reason for one in dropped] == ([reason] if reason else [])


def test_the_hashes_are_made_once_and_follow_the_lists(lists, tmp_path):
    step = UrlFilter(lists=str(lists))
    step.prepare()
    made = sorted((tmp_path / "cache" / "quintet").glob("[!.]*"))
    assert [len(np.load(path)) for path in made] == [3, 1]
    stamp = [path.stat().st_mtime_ns for path in made]
    step.prepare()
    assert [path.stat().st_mtime_ns for path in made] == stamp


def test_lists_that_are_not_there_are_told(tmp_path):
    with pytest.raises(UserError, match=f"has no {ARCHIVE}"):
        UrlFilter(lists=str(tmp_path)).prepare()


def test_lists_that_change_are_read_again(lists):
    step, batch = UrlFilter(lists=str(lists)), to_batch([Document("a", "text", "", "http://good.com/zebra")])
    assert step(batch).reasons == [None]
    (lists / "banned_words.txt").write_text("zebra\n")
    assert step(batch).reasons == ["hard_blacklisted"]


def test_words_of_which_nothing_is_left_refuse_nothing(lists):
    (lists / "banned_subwords.txt").write_text("free\n\n\u043a\u0430\n")
    batch = to_batch([Document("a", "text", "", "http://good.com/")])
    assert UrlFilter(lists=str(lists))(batch).reasons == [None]


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: write_archive(path.parent, domains="a.com\n"),
    ],
)
def test_damaged_lists_are_told(lists, harm):
    harm(lists / ARCHIVE)
    with pytest.raises(UserError, match="is no archive of lists"):
        UrlFilter(lists=str(lists)).prepare()


def config(root, lists, *recipe):
    return DataConfig(str(root), recipe=({"step": "url_filter", "lists": str(lists)}, *recipe), heldout_fraction=0.4)


def test_a_corpus_is_stale_when_the_lists_change(lists, tmp_path):
    pages = tmp_path / "pages.jsonl"
    addresses = ["http://bad.com/", *(f"http://good{number}.org/" for number in range(9))]
    rows = [{"id": url, "url": url, "text": f"A text of {url}"} for url in addresses]
    pages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given, work = config(pages, lists, {"step": "language", "languages": (), "threshold": 0.0}), tmp_path / "w"
    summary = engine.curate(given, work)
    assert summary["dropped"] == {"domain": 1}
    told = json.loads((work / "curated" / "dropped.jsonl").read_text())
    assert (told["id"], told["reason"], told["step"]) == ("http://bad.com/", "domain", "url_filter")
    kept = [document for path in (work / "curated").glob("*.parquet") for document in read_documents(path)]
    assert all(document.language and document.meta["language_score"] > 0 for document in kept)
    (lists / "banned_words.txt").write_text("poker\n")
    with pytest.raises(UserError, match="banned_words"):
        engine.curate(given, work)
    with pytest.raises(UserError, match=r"stale: url_filter: banned_words\.txt has changed"):
        engine.require_curated(given, work)
    (lists / "banned_words.txt").unlink()
    engine.require_curated(given, work)  # to train, the lists need not be at hand


def test_a_step_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_steps.py").write_text(OWN_STEP_AND_OTHERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    steps = build_recipe(({"step": "my_steps:Shouting", "most": 0.5}, {"step": "my_steps:Shouting", "most": 0.9}))
    _, dropped = through(steps, to_batch([Document("a", "LOUD", ""), Document("b", "Calm", "")]))
    assert [(one.id, one.reason, one.step) for one in dropped] == [("a", "shouting", "my_steps:Shouting")]
    for name, message in WRONG:
        with pytest.raises(UserError, match=message):
            build_recipe(({"step": name},))


WRONG = [
    ("my_steps:Quiet", "is not found"),
    ("my_steps:plain", "must be a dataclass with"),
    ("my_steps:Empty", "must be a dataclass with"),
    (":X", "is not found"),
    ("..x:Y", "is not found"),
    (["length"], "unknown step"),
]
OWN_STEP_AND_OTHERS = (
    OWN_STEP
    + """
plain = 1


@dataclasses.dataclass(frozen=True)
class Empty:
    version: ClassVar[int] = 1
"""
)


def test_a_conversation_is_not_changed_behind_its_messages():
    talk = Document("a", "user: write to a@b.co", "", meta={"messages": []})
    with pytest.raises(UserError, match="personal_data changes the text of a, which is a conversation"):
        through(build_recipe(({"step": "personal_data"},)), to_batch([talk]))
