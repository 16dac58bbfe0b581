"""Chat templates beside transformers (recorded), their masks, and what a hostile one can do."""

import concurrent.futures
import datetime
import json
import pickle
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.chat as module
from core.errors import UserError
from data.chat import ChatTemplate, default_source, open_template
from data.conversations import encode_conversation
from lab import ByteTokenizer

pytest.importorskip("jinja2")

from importlib import util

_spec = util.spec_from_file_location("chat_cases", Path(__file__).with_name("chat_cases.py"))
cases = util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

GOLDEN = json.loads(Path(__file__).with_name("chat_golden.json").read_text(encoding="utf-8"))
SOURCES = {**cases.TEMPLATES, "ours": default_source()}
# Templates that leave out a message without a word; transformers does too.
SILENT = {("zephyr", "tools"), ("zephyr", "unknown_role")} | {
    ("loops", name) for name, (messages, _) in cases.CONVERSATIONS.items() if any(m["role"] == "system" for m in messages)  # noqa: E501
}  # fmt: skip


@pytest.fixture(scope="module", params=SOURCES)
def template(request):
    return ChatTemplate(SOURCES[request.param], bos=cases.BOS, eos=cases.EOS, name=request.param)


@pytest.mark.parametrize("conversation", cases.CONVERSATIONS)
def test_texts_and_masks_are_those_of_transformers(template, conversation):
    messages, variables = cases.CONVERSATIONS[conversation]
    golden = GOLDEN[template.name][conversation]
    if (template.name, conversation) in SILENT:
        with pytest.raises(UserError, match=r"writes nothing of message \d, whose role is '(system|tool|judge)'"):
            template.render(messages, **variables)
    elif "error" in golden:
        with pytest.raises(UserError, match=f"{template.name} refuses the conversation: {golden['error']}"):
            template.render(messages, **variables)
    else:
        assert template.render(messages, **variables) == golden["text"]
        assert template.render(messages, add_generation_prompt=True, **variables) == golden["prompt"]
        assert "mask" in golden or template.name not in ("ours", "loops", "chatml_marked")
        if "1" in golden.get("mask", ""):
            ids, mask = encode_conversation(
                ByteTokenizer((cases.BOS, cases.EOS, *cases.SPECIAL)), template, messages, **variables
            )
            assert "".join(str(int(trained)) for trained in mask) == golden["mask"]
            assert len(ids) == len(mask)


def make(source, **options):
    return ChatTemplate(source, bos="<s>", eos="</s>", name="T", **options)


def spans_of(template, messages, **variables):
    text, spans = template.render_with_spans(messages, **variables)
    return [text[begin:end] for begin, end in spans]


CONTENT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


def conversation(turns):
    return [{"role": role, "content": words} for turn in turns for role, words in zip(("user", "assistant"), turn)]


@given(TURNS)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ours", "{}<|im_end|>"),
        ("chatml_marked", "{}<|im_end|>"),
        ("inst", " {} </s>"),
        ("turns", "{}<end_of_turn>"),
        ("headers", "{}<|eot_id|>"),
    ],
)
def test_the_assistant_said_its_words_and_its_end_of_turn(name, said, turns):
    """The mask covers these and nothing else, whether by generation blocks or by comparing."""
    strip = name not in ("ours", "chatml_marked")
    expected = [said.format(words.strip() if strip else words) for _, words in turns]
    assert spans_of(TEMPLATES[name], conversation(turns)) == expected


TEMPLATES = {name: ChatTemplate(source, bos="<s>", eos="</s>", date="2026-05-01") for name, source in SOURCES.items()}


@given(TURNS)
@settings(max_examples=40, deadline=None)
def test_tokens_are_trained_on_where_they_begin_in_what_was_said(turns):
    messages, tokenizer = conversation(turns), ByteTokenizer(("<|im_start|>", "<|im_end|>"))
    ids, mask = encode_conversation(tokenizer, TEMPLATES["ours"], messages, enable_thinking=False)
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    said = b"".join(bytes([i]) if i < 256 else names[i].encode() for i, trained in zip(ids, mask) if trained)
    assert said == "".join(words + "<|im_end|>" for _, words in turns).encode()


def test_the_end_of_a_turn_that_is_whitespace_alone_is_the_assistants():
    prompted = make(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert spans_of(prompted, cases.TWO) == [cases.TWO[1]["content"] + "\n\n"]


def test_what_cannot_be_told_apart_is_refused():
    stripped = make(
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content.split('</think>')[-1] }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    thinks = [cases.TWO[0], {"role": "assistant", "content": "<think>two</think>Four"}]
    assert spans_of(stripped, thinks) == ["<think>two</think>Four</s>"]
    with pytest.raises(
        UserError, match="T refuses the conversation: message 2 is written otherwise when others follow"
    ):
        stripped.render_with_spans(thinks + cases.TWO)
    nested = make(
        "{% generation %}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{% endgeneration %}"  # noqa: E501
    )
    with pytest.raises(UserError, match="blocks lie within one another"):
        nested.render_with_spans(cases.TWO)
    unsaid = make(
        "{% for m in messages %}{{ m.content }}{% if 0 %}{% generation %}{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="blocks hold nothing of what the assistant said"):
        unsaid.render_with_spans(cases.TWO)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "T: the conversation has no messages"),
        ("hello", "T: a conversation is a list of messages, not str"),
        ([{"content": "x"}], "T: message 1 has no role"),
        ([{"role": "user"}], "T: message 1, of user, has no content"),
        ([{"role": "user", "content": "\ud800"}], r"T: the conversation is not JSON data in UTF-8 \('utf-8' codec"),
        (
            [{"role": "user", "content": "x", "when": datetime.date(2026, 1, 1)}],
            "T: the conversation is not JSON data",
        ),
    ],
)
def test_what_is_no_conversation_is_told_in_one_line(messages, line):
    with pytest.raises(UserError, match=line):
        make("{{ messages }}").render(messages)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{% for m in messages %}", r"T fails: line 1: Unexpected end of template"),
        ("{% frob %}", "T fails: line 1: Encountered unknown tag 'frob'"),
        ("{{ messages.x.y }}", "T fails: UndefinedError: .* has no attribute 'x'"),
        ("{{ 1 / 0 }}", "T fails: ZeroDivisionError: division by zero"),
        ("{% include '/etc/passwd' %}", "T fails: TypeError: no loader for this environment specified"),
        ("{{ ''.__class__.__mro__ }}", "T fails: SecurityError: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "T fails: SecurityError: .*append.* is unsafe"),
        ("{{ strftime_now.__globals__.x }}", "T fails: SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "T fails: OverflowError: Range too big"),
        ("{{ 'a' * 10**11 }}", "T fails: needs more than 2 GB of memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "T fails: RecursionError"),
        ("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "refuses .*: the text is longer than 33,554,432 char"),  # noqa: E501
        ("{{ raise_exception('only\nRoman\x1b[31m numerals') }}", r"T refuses the conversation: only Roman \[31m numerals$"),  # noqa: E501
        ("{{ lipsum() }}", "T fails: UndefinedError: 'lipsum' is undefined"),
    ],
)  # fmt: skip
def test_a_bad_template_is_told_in_one_line(source, line):
    with pytest.raises(UserError, match=line) as refusal:
        make(source).render(cases.TWO)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",  # noqa: E501
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_a_template_that_takes_too_long_is_ended(monkeypatch, source):
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    template, began = make(source), time.monotonic()
    with pytest.raises(UserError, match=r"T takes more than 0 s for a conversation of \d+ bytes"):
        template.render(cases.TWO)
    assert time.monotonic() - began < 3
    with pytest.raises(UserError, match="T takes more than"):
        template.render(cases.TWO)  # another process, the same end


def test_a_template_too_long_or_a_variable_of_ours_is_refused():
    with pytest.raises(UserError, match="T has 300,000 characters, more than the 262,144 of any template"):
        make("x" * 300_000)
    with pytest.raises(UserError, match="T: eos_token is not a variable that a conversation may set"):
        make("{{ messages }}").render(cases.TWO, eos_token="x")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("ours", "<|im_end|>"),
        ("chatml", "<|im_end|>"),
        ("headers", "<|eot_id|>"),
        ("inst", "</s>"),
        ("zephyr", "</s>"),
    ],
)
def test_the_end_of_a_turn(name, end):
    assert TEMPLATES[name].end_of_turn() == end


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("import os; os._exit(3)", r"T: the process that renders it died \(3\)"),
        ("raise ModuleNotFoundError(\"No module named 'jinja2'\")", r"need the package jinja2; install it with `pip"),
    ],
)
def test_a_renderer_that_dies_is_told_in_one_line(tmp_path, monkeypatch, script, line):
    (tmp_path / "renderer.py").write_text(script)
    monkeypatch.setattr(module, "RENDERER", tmp_path / "renderer.py")
    with pytest.raises(UserError, match=line):
        make("{{ messages }}").render(cases.TWO)


def test_threads_share_a_template_and_processes_may_get_it():
    template, messages = TEMPLATES["ours"], [[{"role": "user", "content": str(n)}] for n in range(40)]
    expected = [template.render(conversation) for conversation in messages]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, messages)) == expected
    assert pickle.loads(pickle.dumps(template)).render(messages[7]) == expected[7]


def test_the_date_is_given_or_today():
    written = "{{ strftime_now('%Y-%m-%d') }}{{ messages }}"
    assert make(written, date="2026-05-01").render(cases.TWO).startswith("2026-05-01")
    assert make(written).render(cases.TWO).startswith(datetime.date.today().isoformat()[:8])
    dated = make(written).dated("2024-02-29")
    assert dated.render(cases.TWO).startswith("2024-02-29")
    assert dated.fingerprint != make(written).fingerprint


def test_a_folder_brings_its_template(tmp_path):
    tokens = {"bos": "<s>", "eos": "</s>"}
    assert open_template(tmp_path, **tokens) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}")
    assert open_template(tmp_path, **tokens) is None
    config.write_text(json.dumps({"chat_template": "A{{ messages }}"}))
    assert open_template(tmp_path, **tokens).source[0] == "A"
    named = [{"name": "tool_use", "template": "C"}, {"name": "default", "template": "B{{ eos_token }}{{ messages }}"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert open_template(tmp_path, **tokens).render(cases.TWO).startswith("B</s>")
    (tmp_path / "chat_template.jinja").write_text("D")
    assert open_template(tmp_path, **tokens).source == "D"


@pytest.mark.parametrize(
    ("name", "payload", "line"),
    [
        ("tokenizer_config.json", b"[1", "is not readable JSON"),
        ("tokenizer_config.json", b"[" * 200_000, "is not readable JSON"),
        ("tokenizer_config.json", b"[]", "does not hold an object of JSON"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template must be a text or a list of name and template"),  # noqa: E501
        ("tokenizer_config.json", b'{"chat_template": [{"name": "rag", "template": "x"}]}', r"name default \(there are: rag\)"),  # noqa: E501
        ("chat_template.jinja", b"\xff\xfe", "is not text in UTF-8"),
        ("chat_template.jinja", b"x" * 2_000_000, "has more than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_an_unreadable_template_is_named(tmp_path, name, payload, line):
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name)) + ".*" + line):
        open_template(tmp_path, bos="<s>", eos="</s>")


def test_the_renderer_ends_with_its_template():
    template = make("{{ messages }}")
    template.render(cases.TWO)
    process = template._renderer.child.process
    del template
    assert process.poll() is not None


def test_our_template_is_packaged():
    setup = (Path(__file__).resolve().parents[2] / "setup.py").read_text()
    assert 'package_data={"data": ["*.jinja"]}' in setup
