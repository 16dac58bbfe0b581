import pytest
import yaml

from data.dataset_card import Size, write_card


def card(tmp_path, licenses=(), languages=(), train=10, more=0):
    """A card's head as YAML, and its body."""
    named = {"names": [[name, 5, 50] for name in licenses], "others": [more, more, more]}
    kept = {"names": [[name, 5, 50] for name in languages], "others": [0, 0, 0]}
    report = {"licenses": named, "languages": {"kept": kept}}
    write_card(tmp_path / "README.md", {"train": Size(train, 1000), "heldout": Size(2, 20)}, [report] * 2, ["length"])
    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_what_the_hub_reads(tmp_path):
    head, body = card(tmp_path, ["CC0-1.0", "PSF-2.0", ""], ["de", "no", "", "klingon"])
    assert head["language"] == ["de", "no"]
    assert head["license"] == ["cc0-1.0", "other", "unknown"]
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*"},
        {"split": "heldout", "path": "data/heldout-*"},
    ]
    assert head["dataset_info"]["splits"][0] == {"name": "train", "num_bytes": 1000, "num_examples": 10}
    assert "| PSF-2.0 | 10 |" in body
    assert "| unknown | 10 |" in body
    assert "Steps of its recipe: length." in body


@pytest.mark.parametrize(
    ("documents", "size"),
    [(997, "n<1K"), (998, "1K<n<10K"), (99_000, "10K<n<100K"), (10**9, "1B<n<10B"), (10**12, "n>1T")],
)
def test_sizes_have_the_hubs_names(tmp_path, documents, size):
    assert card(tmp_path, train=documents)[0]["size_categories"] == [size]


def test_names_from_strangers_are_no_markup(tmp_path):
    head, body = card(tmp_path, ["a|b\n---\nlicense: mit", "<script>x</script>", "`c`"], ["en: [", "a\nb"])
    assert head["license"] == ["other"]
    assert "language" not in head
    assert not set("<>`") & set(body.partition("## Licences")[2].partition("\n\n")[2].replace("`license`", ""))
    assert all(line.count("|") in (0, 3) for line in body.splitlines())


def test_rare_names_are_counted_together(tmp_path):
    _, body = card(tmp_path, [f"L{number}" for number in range(25)], more=7)
    assert "| others | 64 |" in body  # five names of ten, and twice 7
