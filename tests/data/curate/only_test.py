import dataclasses
from typing import ClassVar

import pytest

from core.errors import UserError
from data.curate.decontaminate import Decontaminate
from data.curate.only import Only
from data.curate.partition import from_batch, through, to_batch
from data.curate.plain import Length
from data.curate.recipe import build_recipe, recipe_spec
from data.curate.step import Outcome, replace, texts
from data.document import Document


@dataclasses.dataclass(frozen=True)
class Shout:
    """Changes texts, adds a column, drops what is empty."""

    version: ClassVar[int] = 3
    mark: str = "!"

    def __call__(self, batch):
        found = [text.upper() + self.mark for text in texts(batch)]
        reasons = ["empty" if text == self.mark else None for text in found]
        loud = replace(replace(batch, "text", found), "loud", [True] * len(found))
        return Outcome(loud, reasons, ["nothing" if reason else None for reason in reasons])


def documents(*pairs):
    return to_batch(
        [Document(str(number), text, "", language=language) for number, (language, text) in enumerate(pairs)]
    )


def test_a_step_sees_its_own_language_and_the_others_pass():
    batch = documents(("de", "ja"), ("en", "yes"), ("de", ""), ("", ""), ("de", "nein"))
    kept, dropped = through({"shout de": Only(Shout(), "de")}, batch)
    assert [(one.id, one.text, one.meta) for one in from_batch(kept)] == [
        ("0", "JA!", {"loud": True}),
        ("1", "yes", {"loud": None}),
        ("3", "", {"loud": None}),
        ("4", "NEIN!", {"loud": True}),
    ]
    assert [(one.id, one.reason, one.step, one.detail) for one in dropped] == [("2", "empty", "shout de", "nothing")]


def test_without_documents_of_the_language_nothing_changes():
    batch = documents(("en", "yes"))
    changed, reasons, _ = Only(Shout(), "de")(batch)
    assert changed.equals(batch)
    assert reasons == [None]


def test_a_recipe_names_the_language_and_the_spec_has_it():
    recipe = (
        {"step": "length", "min_chars": 9, "only": "de"},
        {"step": "length", "min_chars": 5, "only": "fr"},
        {"step": "length", "min_chars": 1},
        {"step": "length", "min_chars": 2, "only": "fr"},
    )
    assert list(build_recipe(recipe)) == ["length de", "length fr", "length", "length fr (4)"]
    assert build_recipe(recipe)["length fr"] == Only(Length(5), "fr")
    assert recipe_spec(recipe)[0] == {
        "step": "Length", "version": 1, "min_chars": 9, "max_chars": 10_000_000, "only": "de",
    }  # fmt: skip
    assert "only" not in recipe_spec(recipe)[2]
    _, dropped = through(build_recipe(recipe), documents(("de", "eight  8"), ("fr", "four"), ("en", "four")))
    assert [(one.id, one.step) for one in dropped] == [("0", "length de"), ("1", "length fr")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"step": "length", "only": 3}, r"recipe\[0\].only=3 must be a language"),
        ({"step": "exact_duplicates", "only": "de"}, r"recipe\[0\]: exact_duplicates looks at all documents"),
    ],
)
def test_what_cannot_be_left_to_a_language_is_refused(entry, message):
    with pytest.raises(UserError, match=message):
        build_recipe((entry,))


def test_what_the_step_rests_on_is_still_known(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine")
    step = Only(Decontaminate((str(tmp_path / "a.txt"),)), "de")
    assert step.files() == [tmp_path / "a.txt"]
    step.prepare()
    assert (tmp_path / "cache").exists()
    assert Only(Length(), "de").files() == []
    Only(Length(), "de").prepare()
    assert (step.version, Only(Shout(), "de").version) == (Decontaminate.version, 3)
    assert build_recipe(({"step": "gopher_quality", "only": "de"},))["gopher_quality de"].packages == ("spacy",)
