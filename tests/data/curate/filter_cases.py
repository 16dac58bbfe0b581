"""Texts on both sides of every threshold of Gopher's, C4's and FineWeb's rules, made by a few lines each.

`tests/parity/filters.py` asks datatrove what it decides of them, into filter_golden.json. Imports nothing of ours.
"""

import itertools
import random

NOUNS = "river mill field bridge town horse winter garden letter teacher market boat forest child song window".split()
VERBS = "crosses remembers follows leaves watches carries finds paints keeps changes".split()
KINDS = "old quiet narrow early green distant careful broken bright heavy warm empty".split()
PLACES = ("near the", "behind a", "over the", "far from every", "below this", "beside an", "without any", "along our")
STARTS, ENDS = "bdfgklmnprst", "aeiou"


def sentence(chance: random.Random) -> str:
    """Prose of fourteen words."""
    kind, other = chance.sample(KINDS, 2)
    noun, second, third, fourth = chance.sample(NOUNS, 4)
    place = chance.choice(PLACES)
    return f"The {kind} {noun} {chance.choice(VERBS)} a {second} of {third} and of {other} {fourth} {place} sea."


def prose(seed: int, sentences: int, between: str = " ") -> str:
    """Sentences that differ."""
    chance = random.Random(seed)
    return between.join(sentence(chance) for _ in range(sentences))


def words(seed: int, count: int, syllables: int = 3) -> list[str]:
    """Made-up words of twice as many letters as syllables, no two alike."""
    chance, found = random.Random(seed), {}
    while len(found) < count:
        found["".join(chance.choice(STARTS) + chance.choice(ENDS) for _ in range(syllables))] = None
    return list(found)


def repeated_runs(n: int, runs: int, filler: int) -> str:
    """Runs of n words, each there twice, between words that are there once."""
    made = words(n, n * runs + filler)
    pieces = [" ".join(made[n * run : n * run + n]) for run in range(runs)] * 2
    rest = made[n * runs :]
    share = -(-filler // len(pieces))
    return " ".join(f"{piece} {' '.join(rest[i * share : (i + 1) * share])}" for i, piece in enumerate(pieces))


def frequent_run(n: int, times: int) -> str:
    """One run of n words many times, each time followed by two other words."""
    made = words(40 + n, 150)
    run, rest = made[:n], iter(made[n:])
    following = [" ".join([*run, next(rest), next(rest)]) if i < times else next(rest) for i in range(66)]
    return " ".join(following)


def repetition() -> dict[str, str]:
    """Around the bounds of Gopher's rules on what comes again."""
    found = {}
    lines = prose(1, 20, "\n").split("\n")
    for k in (2, 9, 10, 12, 15):
        found[f"paragraphs, {k} alike"] = "\n\n".join(lines + ["Yes."] * k)
        found[f"lines, {k} alike"] = "\n".join(lines + ["Yes."] * k)
    for k in (3, 6, 7, 8, 10):
        long = " ".join(lines[:k])
        found[f"long paragraph of {k} twice"] = "\n\n".join([long, *lines, long])
        found[f"long line of {k} twice"] = "\n".join([long, *lines, long])
    for n, times in itertools.product((2, 3, 4), (3, 4, 5, 7, 9, 12)):
        found[f"{times} times {n} words"] = frequent_run(n, times)
    for n in range(5, 11):
        for filler in range(50, 111, 12):
            found[f"runs of {n} twice, {filler} others"] = repeated_runs(n, 3, filler * n // 5)
    return found


def gopher() -> dict[str, str]:
    """Around the bounds of Gopher's rules on words."""
    found = {f"{count} words": " ".join(prose(2, 8).split()[:count]) for count in (10, 49, 50, 51)}
    found |= {f"{count} words": " ".join(prose(3, 9200).split()[:count]) for count in (100_000, 100_001, 100_030)}
    for share in (0, 10, 18, 20, 22, 40):
        short = ["to", "be", "of", "it", "no", "is"] * 10
        found[f"short words and {share} others"] = " ".join(short + words(4, share)) + "."
        found[f"long words and {share} others"] = " ".join([*words(5, 40, 6), "of", "the", *words(6, share)]) + "."
    base = prose(7, 10)
    for k in (8, 17, 19, 21, 30):
        found[f"{k} hashes"] = base + " #" * k
        found[f"{k} dots"] = base.replace(" a ", "... ", k) + " ..." * max(0, k - 10) + " there"
        found[f"{k} ellipses"] = base + " …" * k + " there"
        found[f"{k} joined ellipses"] = base.replace(" ", "… ", k)
    for k in (0, 1, 2, 3, 10):
        lines = [
            f"{'- •'[i % 2 * 2]} {line}" if i >= k else line for i, line in enumerate(prose(8, 20, "\n").split("\n"))
        ]
        found[f"bullets but for {k}"] = "\n".join(lines)
    for k in (3, 6, 7, 12):
        lines = [
            line[:-1] + ("..." if i % 2 else "…") if i < k else line
            for i, line in enumerate(prose(9, 20, "\n").split("\n"))
        ]
        found[f"{k} lines go on"] = "\n".join(lines)
    for k in (10, 24, 28, 31, 60):
        found[f"{k} numbers"] = base + "".join(f" {number * 37 % 991}" for number in range(k))
    for stop in ("", "the", "The and", "the the", "the and", "be have with", "That, of course"):
        found[f"stop words {stop!r}"] = " ".join(words(10, 60)) + f" {stop}."
    return found


def c4() -> dict[str, str]:
    """What C4's rules leave out, and what is then too little."""
    lines = prose(11, 6, "\n")
    found = {f"{count} sentences": prose(12, count) for count in (1, 4, 5, 6)}
    found |= {f"{count} lines": prose(13, count, "\n") for count in (4, 5, 6)}
    for name, line in {
        "lorem": "Then comes Lorem Ipsum and so on.",
        "lorem after script": "Turn on JavaScript for lorem ipsum.",
        "bracket": "Here a function() { begins.",
        "bracket in a policy": "Our cookie policy is {this one} here.",
        "script": "Please turn on JavaScript to see this page.",
        "terms": "Read our Terms of Use before you go on.",
        "cookies": "This site uses cookies and so on and on.",
        "two words": "Two words",
        "three words": "Now three words",
        "long word": "A word " + "x" * 1001 + " is here.",
        "word of 1000": "A word " + "x" * 1000 + " is here.",
        "citation": "It is so[12] as we know[edit] it[citation needed] today [a].",
        "abbreviation": "Dr. Miller met Mr. Smith at 3.5 p.m. in the U.S. today",
        "no mark": "a line without any mark at its end",
        "quotes": "\u201cIt is late,\u201d he said. \u201cWe go home now!\u201d Did they? No...",
        "spaces": "   There is white space around this line.  \t ",
        "separators": "One line here\u2028and one line there\x0band a third of them\x85and one more of them.",
    }.items():
        found[f"line: {name}"] = f"{lines}\n{line}"
        found[f"only just: {name}"] = prose(14, 4) + f"\n{line}"
    return found


def fineweb() -> dict[str, str]:
    """Around the bounds of FineWeb's rules on lines."""
    found = {"nothing": "", "white": " \n\t\n ", "one word": "word"}
    for k in (0, 2, 3, 4, 10):
        lines = [line if i < k else line[:-1] for i, line in enumerate(prose(15, 28, "\n").split("\n"))]
        found[f"{k} lines end"] = "\n".join(lines)
    for marks in ("!?", ")]", ":;", "\u3002\uff01", "\"'", "\u2026\u0964"):
        lines = [line[:-1] + marks[i % len(marks)] for i, line in enumerate(prose(16, 12, "\n").split("\n"))]
        found[f"lines end with {marks}"] = "\n".join(lines)
    for length, k in itertools.product((29, 30, 31), (12, 13, 14, 20)):
        short = [" ".join(words(17 + i, 8))[: length - 1] + "." for i in range(k)]
        found[f"{k} lines of {length}"] = "\n".join([*short, *prose(18, 20 - min(k, 19), "\n").split("\n")])
    for count in (20, 80, 100, 140):
        lines = prose(19, count, "\n").split("\n")
        found[f"a line of {count} twice"] = "\n".join([*lines, lines[0]])
    for breaks in (1, 3, 5, 6, 8):
        found[f"{breaks} breaks after a line"] = prose(20, 20, "\n" * breaks)
    return found


def texts() -> dict[str, str]:
    """All of them, by name."""
    return repetition() | gopher() | c4() | fineweb()
