"""Any folder of text, books or code or notes: what is short, binary, mostly symbols or repeats itself is left out.

    python launch.py --config=experiments/data/plain.py --workdir=runs/plain --config.data.path=DIR

For documents that somebody chose already. No rule asks for prose or a language, and none needs a package beyond the
quickstart's; for web pages there is experiments/data/fineweb.py.

Expected time: 3 MB a second on each core.
Expected result: of files that somebody chose 9 in 10 stay or more; what is not UTF-8 is counted, not guessed at.
Measured 2026-11-22: 140 files of books, speeches, news, Wikipedia and Genesis in eight languages (17.4 MB) in 5 s of
the processor; 357 documents stay, a long file being several; 12 files that are not UTF-8 (3.2 MB) are dropped.
"""

from ml_collections import ConfigDict

from experiments import quickstart

RECIPE = (
    {"step": "length", "min_chars": 100},
    {"step": "control_characters"},
    {"step": "letters", "min_fraction": 0.5},  # of what is no white space
    {"step": "duplicate_lines", "max_fraction": 0.3},
    {"step": "exact_duplicates"},
)


def get_config() -> ConfigDict:
    """The quickstart with this recipe."""
    config = quickstart.get_config()
    config.data.recipe = RECIPE
    return config.lock()
