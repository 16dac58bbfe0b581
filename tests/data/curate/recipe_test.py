import pytest

from core.errors import UserError
from data.curate.recipe import build_recipe, recipe_spec

PROSE = "A text of ordinary words, long enough to be of use to someone who learns from it.\n"


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ({"step": "length", "min_chars": 50}, PROSE, None),
        ({"step": "length", "min_chars": 100}, PROSE, "too_short"),
        ({"step": "length", "min_chars": 0, "max_chars": 10}, PROSE, "too_long"),
        ({"step": "control_characters"}, PROSE, None),
        ({"step": "control_characters"}, PROSE + "\0", "control_characters"),
        ({"step": "control_characters"}, "\ufffd" + PROSE, "control_characters"),
        ({"step": "letters"}, PROSE, None),
        ({"step": "letters"}, "1 2 3 4 5 six\n", "too_few_letters"),
        ({"step": "letters"}, "中文字符也是字母。", None),
        ({"step": "duplicate_lines"}, PROSE + "else:\n" * 9, None),
        ({"step": "duplicate_lines"}, PROSE * 2, "duplicate_lines"),
        ({"step": "duplicate_lines", "max_fraction": 0.5}, PROSE * 2, None),
    ],
)
def test_each_step_gives_its_exact_reason(step, text, reason):
    (built,) = build_recipe((step,)).values()
    assert built.reason(text) == reason


def test_empty_text_breaks_no_step():
    for name in ("length", "control_characters", "letters", "duplicate_lines"):
        build_recipe(({"step": name},))[name].reason("")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (({"step": "lenght"},), "unknown step 'lenght'; did you mean length?"),
        (({},), "unknown step None"),
        (({"step": "length", "min_char": 3},), "data.recipe[0].min_char; did you mean min_chars?"),
        (({"step": "length", "min_chars": "x"},), "data.recipe[0].min_chars='x' must be an integer"),
        (({"step": "length", "min_chars": 9, "max_chars": 1},), "min_chars must not exceed max_chars"),
        (({"step": "exact_duplicates"}, {"step": "length"}), "must come last"),
        (({"step": "minhash"}, {"step": "minhash"}), "minhash is there twice"),
        (({"step": "minhash", "only": "de"},), "minhash looks at all documents"),
    ],
)
def test_a_wrong_recipe_is_told(recipe, message):
    with pytest.raises(UserError) as error:
        build_recipe(recipe)
    assert message in str(error.value)


def test_the_spec_holds_every_setting_and_version():
    assert recipe_spec(({"step": "letters"},)) == [{"step": "Letters", "version": 1, "min_fraction": 0.5}]
