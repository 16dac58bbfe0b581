"""Samples of documents as part of a page: two panes side by side, to hold what is dropped against what is kept.

Without its script the page shows all samples, folded by group. Texts and addresses are anybody's: they are escaped,
characters that hide or turn text show as signs, and only a web address is a link.
"""

import difflib
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.page import Html, Page, code, escape, tag
from core.progress import quantity

# Characters without a picture that turn, join or hide text. Zero-width joiners stay: words of Persian need them.
UNSEEN = re.compile(
    "[\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
PIECE = re.compile(r"[\w.@+-]+|\s+|[^\w\s]")  # an address is one
Key = tuple[str, str, str]
ALIKE = 0.4  # texts less alike are shown one below the other


def browser(page: Page, samples: Sequence[Mapping[str, Any]]) -> None:
    """Adds all groups, and what the script needs to show them one at a time."""
    panes = [tag("section", class_="pane", data_first=first, hidden="") for first in _first_seen(samples)]
    groups = [_group(group, name) for group, name in zip(samples, places(samples).values())]
    page.put(tag("div", *panes, class_="panes"), tag("div", *groups, class_="groups"))


def places(samples: Sequence[Mapping[str, Any]]) -> dict[Key, str]:
    """What a link to a group points to, by its kind, step and reason; those of a reason need not be ASCII."""
    return {_key(group): f"sample-{number}" for number, group in enumerate(samples, 1)}


def title(group: Mapping[str, Any]) -> str:
    """What a group is called."""
    if group["kind"] == "kept":
        return "kept"
    if group["kind"] == "changed":
        return f"changed by {group['step']}"
    return f"{group['step'] or 'reading'}: {group['reason']}"


def shown(text: str) -> Html:
    """Text with signs in the place of characters that are not seen."""
    parts, end = [], 0
    for found in UNSEEN.finditer(text):
        parts += [text[end : found.start()], tag("span", f"U+{ord(found[0]):04X}", class_="sign")]
        end = found.end()
    return Html("".join(map(escape, [*parts, text[end:]])))


def plain(text: str) -> str:
    """The same for a place that holds no markup."""
    return UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def _first_seen(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The reason that drops most in one pane, or else what is changed, and what is kept in the other."""
    found, others = places(samples), [group for group in samples if group["kind"] != "kept"]
    if others:
        yield found[_key(max(others, key=lambda group: (group["kind"] == "dropped", group["of"])))]
    yield from (found[_key(group)] for group in samples if group["kind"] == "kept")


def _key(group: Mapping[str, Any]) -> Key:
    return group["kind"], group["step"], group["reason"]


def _group(group: Mapping[str, Any], place: str) -> Html:
    own = group["samples"]
    number = f"{len(own)} of {group['of']:,}" if group["of"] > len(own) else f"{len(own)}"
    summary = tag("summary", plain(f"{title(group)} ({number})"))
    data = {"data_kind": group["kind"], "data_title": plain(title(group)), "data_of": f"{group['of']:,}"}
    return tag("details", summary, *map(_article, own), id=place, **data)


def _article(sample: Mapping[str, Any]) -> Html:
    facts = [
        sample.get("language"),
        f"source {sample['source']}",
        f"licence {sample['license']}" if sample.get("license") else None,
        quantity(sample["bytes"]),
        *(f"{name} {value:.4g}" for name, value in sample.get("values", {}).items()),
    ]
    head = [tag("p", tag("bdi", code(shown(sample["id"])), dir="auto"))]
    if sample.get("url") and sample["url"] != sample["id"]:
        head.append(tag("p", _address(sample["url"]), class_="address"))
    head.append(tag("p", shown(" · ".join(filter(None, facts))), class_="facts"))
    if "kept" in sample:
        kept = tag("bdi", code(shown(sample["kept"])), dir="auto")
        head.append(tag("p", "In its place stays ", kept, class_="facts"))
    return tag("article", tag("header", *head), *_body(sample))


def _address(url: str) -> Html:
    """A link where it leads to the web, else text: `javascript:` is an address too."""
    text = tag("bdi", shown(url), dir="auto")
    try:
        web = urllib.parse.urlsplit(url).scheme in ("http", "https") and not UNSEEN.search(url)
    except ValueError:
        web = False
    return tag("a", text, href=url, rel="noreferrer noopener nofollow", target="_blank") if web else text


def _body(sample: Mapping[str, Any]) -> list[Html]:
    if "text" not in sample:
        return [tag("p", "It could not be read, so there is no text.", class_="facts")]
    if "before" in sample:
        return _changed(sample)
    cut = len(sample["text"]) < sample["characters"]
    told = f"the first {len(sample['text']):,} of {sample['characters']:,} characters" if cut else ""
    return [_pre(shown(sample["text"])), *_note(told)]


def _changed(sample: Mapping[str, Any]) -> list[Html]:
    """Both texts in one, with what was taken out and put in, or one after the other where they share little."""
    before, after = PIECE.findall(sample["before"]), PIECE.findall(sample["text"])
    matcher = difflib.SequenceMatcher(a=before, b=after)
    begin = f"from character {sample['begin']:,} on" if sample["begin"] else ""
    if matcher.ratio() < ALIKE:
        texts = [[tag("p", name, class_="facts"), _pre(shown(sample[key]))] for name, key in
                 (("before", "before"), ("after", "text"))]  # fmt: skip
        return [*texts[0], *texts[1], *_note(begin)]
    steps = matcher.get_opcodes()
    if len(steps) > 1 and steps[-1][0] != "equal" and len(sample["before"]) != len(sample["text"]):
        steps = steps[:-1]  # where one excerpt ends before the other nothing was changed
    parts = []
    for kind, a, b, c, d in steps:
        if kind == "equal":
            parts.append(shown("".join(before[a:b])))
            continue
        parts += [tag("del", shown("".join(before[a:b])))] if b > a else []
        parts += [tag("ins", shown("".join(after[c:d])))] if d > c else []
    return [_pre(*parts), *_note(begin)]


def _pre(*parts: Html) -> Html:
    return tag("pre", Html("\n"), *parts, dir="auto", tabindex="0")


def _note(text: str) -> list[Html]:
    return [tag("p", text, class_="facts")] if text else []


STYLE = """
.panes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem;
  margin-top: 1.25rem; }
.pane { min-width: 0; }
.pane .bar { display: flex; gap: .5rem; align-items: center; margin-bottom: .75rem; }
.pane select, .pane button { font: inherit; font-size: .88rem; color: var(--ink); background: var(--raised);
  border: 1px solid var(--other); border-radius: .35rem; padding: .3rem .55rem; min-height: 2.1rem; }
.pane select { flex: 1; min-width: 0; text-overflow: ellipsis; }
.pane button { cursor: pointer; min-width: 2.3rem; }
.pane .place { font-size: .82rem; color: var(--muted); white-space: nowrap; font-variant-numeric: tabular-nums; }
.pane[data-kind=dropped] { --mark: var(--orange); }
.pane[data-kind=changed] { --mark: var(--amber); }
.pane[data-kind=kept] { --mark: var(--blue); }
.pane article { border-top: 3px solid var(--mark); padding-top: .6rem; }
.pane pre { height: 26rem; }
.pane article header { min-height: 4.9rem; }
article { margin: .75rem 0 1.5rem; contain: paint; }
article header p { margin: 0 0 .2rem; font-size: .88rem; overflow-wrap: anywhere; line-height: 1.45; }
article .facts { color: var(--muted); font-size: .82rem; margin: .2rem 0; }
article pre { overflow: auto; max-height: 26rem; margin: .6rem 0 .4rem; }
article del { color: var(--orange); text-decoration-thickness: 1.5px; }
article ins { color: var(--blue); text-decoration: underline; text-decoration-thickness: 1.5px; font-weight: 600; }
.sign { font-size: .72em; border: 1px solid var(--amber); color: var(--amber); border-radius: .2rem; padding: 0 .2em;
  unicode-bidi: isolate; direction: ltr; }
@media print { .panes { display: none; } }
"""

SCRIPT = """
(() => {
  const groups = [...document.querySelectorAll('.groups > details')];
  const panes = [...document.querySelectorAll('.pane')];
  const make = (name, parent, text) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return parent.appendChild(made);
  };
  const open = pane => {
    const bar = make('div', pane);
    bar.className = 'bar';
    const select = make('select', bar);
    select.setAttribute('aria-label', 'Which documents');
    for (const [kind, label] of [['dropped', 'Dropped'], ['changed', 'Changed'], ['kept', 'Kept']]) {
      const own = groups.filter(group => group.dataset.kind === kind);
      if (!own.length) continue;
      const set = make('optgroup', select);
      set.label = label;
      for (const group of own) make('option', set, group.dataset.title + ' · ' + group.dataset.of).value = group.id;
    }
    const back = make('button', bar, '\\u2190'), place = make('span', bar), on = make('button', bar, '\\u2192');
    place.className = 'place';
    place.setAttribute('aria-live', 'polite');
    back.type = on.type = 'button';
    back.setAttribute('aria-label', 'Previous');
    on.setAttribute('aria-label', 'Next');
    const body = make('div', pane);
    let group, index = 0;
    const show = () => {
      const own = group.querySelectorAll('article');
      index = (index + own.length) % own.length;
      body.replaceChildren(own[index].cloneNode(true));
      place.textContent = (index + 1) + ' / ' + own.length;
      pane.dataset.kind = group.dataset.kind;
    };
    const choose = id => {
      group = groups.find(own => own.id === id);
      select.value = id;
      index = 0;
      show();
    };
    const step = by => { index += by; show(); };
    select.addEventListener('change', () => choose(select.value));
    back.addEventListener('click', () => step(-1));
    on.addEventListener('click', () => step(1));
    pane.addEventListener('keydown', event => {
      if (event.target === select || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === 'ArrowLeft') step(-1);
      if (event.key === 'ArrowRight') step(1);
    });
    choose(pane.dataset.first);
    pane.hidden = false;
    return choose;
  };
  if (!groups.length) return;
  const choices = panes.map(open);
  document.querySelector('.groups').hidden = true;
  document.addEventListener('click', event => {
    const link = event.target.closest('a[href^="#sample-"]');
    if (!link) return;
    event.preventDefault();
    choices[0](link.getAttribute('href').slice(1));
    panes[0].scrollIntoView({ block: 'start', behavior: 'smooth' });
  });
})();
"""
