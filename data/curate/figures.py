"""The pictures of the curation report as inline SVG: what stays is blue, what goes is orange.

A picture is drawn at the width where it will stand, so that its text has the size of the page's small print.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from core.page import Html, short, tag
from core.progress import count, quantity

WIDE, NARROW = 984, 360  # pixels: the page's column, a phone
LINE, HEAD, GAP = 20, 30, 10  # pixels: a reason, the name of a step, the space below it
TURN = 7  # radius of a bend
LINES = 12  # reasons of a step that are drawn apart
BINS = 12  # of a histogram at least, so that one bin alone is no wall
STYLE = """
.flow text { font-size: 12.5px; fill: var(--ink); }
.flow .quiet { fill: var(--muted); }
.flow .name { font-weight: 600; }
.flow .stays, .chart .stays { fill: var(--blue); }
.flow .goes, .chart .goes { fill: var(--orange); }
.flow .trimmed { fill: var(--amber); }
.flow .light { opacity: .5; }
.flow .border { stroke: var(--grid); }
.chart text { font-size: 11.5px; fill: var(--muted); }
.chart .axis { stroke: var(--other); }
.chart .border { stroke: var(--grid); }
"""


class Exit(NamedTuple):
    """What leaves the flow at a step: one reason, several, or the text that a step takes out of documents."""

    label: str
    amount: int
    kind: str = "goes"


class Place(NamedTuple):
    """Where things are, in pixels from the left, on a desktop or a phone."""

    width: int
    left: int  # of the stem, which has the numbers of documents beside it where there is room
    stem: int  # width of the most that flows
    sinks: int  # where a reason's band ends
    names: int  # where its name begins
    letters: int  # of a reason that fit

    @property
    def wide(self) -> bool:
        """Whether there is room for more than the names."""
        return self.left > 0


PLACES = {WIDE: Place(WIDE, 76, 400, 504, 516, 44), NARROW: Place(NARROW, 0, 92, 106, 116, 20)}


def flow(steps: Sequence[Mapping[str, Any]], unit: str, last: str, width: int) -> Html:
    """The documents, or bytes, from the sources down to what is kept; what a step drops leaves to the right.

    All widths are to one scale; a name has a line of its own whatever its width.
    """
    place, kept = PLACES[width], steps[-1][unit][1]
    scale = place.stem / (max(max(step[unit]) for step in steps) or 1)
    parts: list[Html] = []
    y = 4.0
    for step in steps:
        y = _block(parts, step, unit, place, scale, y)
    parts.append(_rect(place.left, y, max(kept * scale, 1), 22, "stays"))
    _line(parts, place, y + 16, [(last, "name")], measure(kept, unit))
    alt = f"{measure(steps[0][unit][0], unit)} {unit} come in, {measure(kept, unit)} are kept"
    return _svg("flow", width, y + 26, alt, parts)


def _block(parts: list[Html], step: Mapping[str, Any], unit: str, place: Place, scale: float, y: float) -> float:
    """One step; returns where the next begins."""
    (before, after), exits = step[unit], _exits(step, unit)
    rows = [max(LINE, one.amount * scale + 6) for one in exits]
    bottom = y + HEAD + sum(rows) + (GAP if exits else 0)
    parts.append(_tag("line", x1=0, x2=place.width, y1=y, y2=y, class_="border"))
    parts.append(_rect(place.left, y, max(after * scale, 1), bottom - y, "stays light"))
    name, told = short(step["step"] or "reading", place.letters), _told(step, exits)
    words = [(name, "name" if exits else "quiet"), (told, "quiet")]
    _line(parts, place, y + 20, words if place.wide or len(told) < 18 else words[:1], measure(before, unit))
    edge, top = place.left + after * scale + sum(one.amount * scale for one in exits), y + HEAD
    for one, room in zip(exits, rows):
        edge -= one.amount * scale
        thick, middle = max(one.amount * scale, 1.0), top + room / 2
        parts.append(_bend(edge, thick, y, middle, place.sinks, one))
        parts.append(_rect(place.sinks, middle - thick / 2, 4, thick, one.kind))
        amount = f"{measure(one.amount, unit)} · {share(one.amount, before)}"
        _line(parts, place, middle + 4.5, [(short(one.label, place.letters), ""), (amount, "quiet")])
        top += room
    return bottom


def _exits(step: Mapping[str, Any], unit: str) -> list[Exit]:
    """What leaves at a step, the largest first."""
    found = [Exit(one["reason"], one[unit]) for one in step["dropped"]]
    others = (step["other_reasons"][0], step["other_reasons"][1 if unit == "documents" else 2])
    rest = [*(one.amount for one in found[LINES:]), others[1]]
    number = len(found[LINES:]) + others[0]
    exits = sorted(found[:LINES], key=lambda one: -one.amount)
    if number:
        exits.append(Exit(f"{number:,} other reasons", sum(rest)))
    before, after = step[unit]
    trimmed = before - after - sum(one.amount for one in exits)
    return [*exits, Exit("taken out of texts", trimmed, "trimmed")] if trimmed > 0 else exits


def _told(step: Mapping[str, Any], exits: Sequence[Exit]) -> str:
    """What is said beside the name of a step."""
    if step["changed"]:
        return f"changes {step['changed']:,}"
    return "" if exits else "drops nothing"


def _bend(x: float, thick: float, top: float, middle: float, end: float, one: Exit) -> Html:
    """A band that comes down from `top` and turns right, as thick after the bend as before."""
    high, low = middle - thick / 2, middle + thick / 2
    inner, outer = x + thick, TURN + thick
    path = (
        f"M{x:.1f} {top:.1f}V{low - outer:.1f}A{outer:.1f} {outer:.1f} 0 0 0 {x + outer:.1f} {low:.1f}H{end:.1f}"
        f"V{high:.1f}H{inner + TURN:.1f}A{TURN} {TURN} 0 0 1 {inner:.1f} {high - TURN:.1f}V{top:.1f}Z"
    )
    return _tag("path", d=path, class_=f"{one.kind} light")


def histogram(title: str, bins: Mapping[str, Sequence[Sequence[int]]], ticks: Mapping[int, str], unit: str) -> Html:
    """Documents kept and dropped by bin, one on the other; `ticks` are at the left edge of a bin."""
    width, height, left, top, bottom = 420, 216, 44, 34, 40
    stays, goes = (dict(map(tuple, bins[fate])) for fate in ("kept", "dropped"))
    low, high = min([*stays, *goes], default=0), max([*stays, *goes], default=0) + 1
    low, high = low - max(0, BINS - high + low) // 2, high + max(0, BINS - high + low + 1) // 2
    most = max((stays.get(i, 0) + goes.get(i, 0) for i in range(low, high)), default=1)
    pitch, up = (width - left - 12) / (high - low), (height - top - bottom) / max(most, 1)
    base = height - bottom
    parts = [_tag("text", title, x=0, y=14, style="font-weight:600;fill:var(--ink);font-size:13px")]
    for level in _levels(most):
        y = base - level * up
        parts.append(_tag("line", x1=left, x2=width, y1=y, y2=y, class_="border"))
        parts.append(_tag("text", count(level), x=left - 6, y=y + 4, text_anchor="end"))
    for i in range(low, high):
        x, wide = left + (i - low) * pitch + pitch * 0.08, pitch * 0.84
        kept, gone = (max(1, own[i] * up) if own.get(i) else 0 for own in (stays, goes))
        parts += [_rect(x, base - kept, wide, kept, "stays")] if kept else []
        parts += [_rect(x, base - kept - gone, wide, gone, "goes")] if gone else []
    parts.append(_tag("line", x1=left, x2=width, y1=base, y2=base, class_="axis"))
    for i in (i for i in sorted(ticks) if low <= i <= high):
        x = left + (i - low) * pitch
        parts.append(_tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(_tag("text", ticks[i], x=x, y=base + 17, text_anchor="middle"))
    parts.append(_tag("text", unit, x=left, y=height - 4))
    kept, gone = sum(stays.values()), sum(goes.values())
    return _svg("chart", width, height, f"{title}: {kept:,} documents kept, {gone:,} dropped", parts)


def measure(amount: int, unit: str) -> str:
    """Documents or bytes, as text of at most nine characters."""
    if unit == "bytes":
        return quantity(amount)
    return f"{amount:,}" if amount < 10_000_000 else count(amount)


def share(part: int, whole: int) -> str:
    """In per cent; what is there is never 0."""
    per_cent = 100 * part / whole if whole else 0.0
    return "<0.1%" if 0 < per_cent < 0.05 else f"{per_cent:.1f}%"


def _levels(most: int) -> list[int]:
    """About four round numbers up to the largest."""
    step = 10 ** max(0, math.floor(math.log10(max(most, 1) / 4))) if most >= 4 else 1
    step *= next((factor for factor in (1, 2, 5) if most / (step * factor) <= 5), 10)
    return list(range(0, most + 1, step))


def _line(parts: list[Html], place: Place, y: float, words: Iterable[tuple[str, str]], number: str = "") -> None:
    """Words with their classes where names begin, and a number left of the stem where there is room."""
    spans = [
        _tag("tspan", word, **({"class_": kind} if kind else {}), **({"dx": 9} if i else {}))
        for i, (word, kind) in enumerate(words)
        if word
    ]
    parts.append(_tag("text", *spans, x=place.names, y=y))
    if number and place.wide:
        parts.append(_tag("text", number, x=place.left - 10, y=y, text_anchor="end", class_="quiet"))


def _rect(x: float, y: float, width: float, height: float, kind: str) -> Html:
    return _tag("rect", x=x, y=y, width=width, height=height, class_=kind)


def _tag(name: str, *parts: Any, **attributes: Any) -> Html:
    """An element whose numbers have one decimal."""
    rounded = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in attributes.items()}
    return tag(name, *parts, **rounded)


def _svg(kind: str, width: int, height: float, alt: str, parts: Iterable[Html]) -> Html:
    view = f"0 0 {width} {math.ceil(height)}"
    # viewBox is the one attribute in SVG whose capital counts
    drawing = tag("svg", *parts, class_=kind, role="img", aria_label=alt, viewBox=view)
    return Html(drawing.replace("<svg ", f'<svg style="max-width: {width * 1.12:.0f}px" ', 1))
