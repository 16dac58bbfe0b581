"""Text at the terminal and through pipes; conversations of several turns."""

import io
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from completer_lab import ByteTokens, completer
from core.errors import UserError
from data.infill import FillInTheMiddle
from evals import terminal
from evals.terminal import Writer, converse
from lab import ROOT, smoke
from model.sample import Sampling
from objectives.config import FillInTheMiddleConfig

pytest.importorskip("jinja2")


def writer(*scripts, max_tokens=None, stop=()):
    return Writer(completer(*scripts), Sampling(temperature=0), max_tokens, stop, seed=0)


def read_by(made):
    """The prompt that the model was last given."""
    return made.completer.tokenizer.decode(made.completer.decoder.prompts[0], special=True)


@pytest.fixture
def typed(monkeypatch):
    """Lines that are typed one after another, then Ctrl-D."""

    def give(*lines):
        waiting = iter(lines)
        monkeypatch.setattr("builtins.input", lambda _: next(waiting, None) or (_ for _ in ()).throw(EOFError))

    return give


def test_text_is_the_prompt_and_what_follows(capsys):
    writer(" ölt. And</s>", stop=(".",)).continue_text("hä")
    assert capsys.readouterr() == ("hä ölt\n", "")


@pytest.mark.parametrize("spm_rate", [0.5, 1.0])
def test_a_middle_is_asked_for_as_it_was_learnt(capsys, spm_rate):
    names = dict(zip(("prefix", "suffix", "middle"), ByteTokens.special_tokens))
    ids = {key: ByteTokens.special_tokens[name] for key, name in names.items()}
    made = writer("öl</s>")
    made.fill_in("hä ", "t.", FillInTheMiddleConfig(0.5, spm_rate, **names))
    assert capsys.readouterr() == ("hä ölt.\n", "")
    document = np.array(ByteTokens().document("hä ölt."))
    learnt = FillInTheMiddle(0, 0.5, spm_rate, **ids, begin=1, end=1)._rearranged(document, 5, 8, spm_rate == 1)
    asked = made.completer.decoder.prompts[0]
    assert asked == learnt[: len(asked)].tolist()
    assert learnt[len(asked) :].tolist() == ByteTokens().encode("öl</s>", special=True)


def test_a_middle_that_is_cut_short_is_told(capsys):
    names = dict(zip(("prefix", "suffix", "middle"), ByteTokens.special_tokens))
    writer("long</s>", max_tokens=2).fill_in("a", "z", FillInTheMiddleConfig(0.5, **names))
    assert capsys.readouterr() == (
        "aloz\n",
        "(the middle is cut short: the cache is full, or --max-tokens reached)\n",
    )
    with pytest.raises(UserError, match="'<fim_prefix>' is not a special token of"):
        writer("x").fill_in("a", "z", FillInTheMiddleConfig(0.5))


def test_the_acceptance_is_told_apart_from_the_text(capsys):
    made = writer("b</s>")
    made.continue_text("a")
    made.tell_acceptance()
    assert capsys.readouterr() == ("ab\n", "6 of 8 drafts accepted (75%)\n")


def test_turns_are_remembered_until_cleared(capsys, typed):
    made = writer("fine<|im_end|>")
    typed("how?", "  and you?  ", "/clear", "anew")
    seen = []
    show = made.answer
    made.answer = lambda *messages, **variables: (show(*messages, **variables), seen.append(read_by(made)))[0]
    converse(made, "Be kind.")
    assert capsys.readouterr().out == "fine\n" * 3
    assert "<|im_start|>user\nhow?<|im_end|>" in seen[1]
    assert "fine<|im_end|>\n<|im_start|>user\nand you?<|im_end|>" in seen[1]
    assert "how?" not in seen[2]
    assert all("Be kind." in text for text in seen)


def test_modes_are_switched_and_have_the_last_word(typed):
    made = writer("ok<|im_end|>")
    for lines, mode in [
        (["a"], "/no_think"),
        (["/think", "a"], "/think"),
        (["/think", "/no_think", "a"], "/no_think"),
    ]:
        typed(*lines)
        converse(made, "Be kind. /no_think")
        assert f"Reasoning Mode: {mode}\n" in read_by(made)
        assert "Be kind.\n" in read_by(made)


def test_a_turn_that_fails_is_told_and_forgotten(capsys, typed):
    made = writer("ok<|im_end|>")
    typed("x" * 1000, "short")
    converse(made)
    out, err = capsys.readouterr()
    assert out == "ok\n"
    assert "raise eval.context; this turn is forgotten" in err
    assert "xxx" not in read_by(made)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(capsys, typed):
    made = writer("ok<|im_end|>")
    advance, made.completer.decoder.advance = (
        made.completer.decoder.advance,
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    typed("one")
    converse(made)
    assert "stopped" in capsys.readouterr().err
    made.completer.decoder.advance = advance
    typed("two")
    converse(made)
    assert "one" not in read_by(made)


def test_an_answer_cut_short_says_so(capsys):
    writer("yes", max_tokens=2).answer([{"role": "user", "content": "?"}])
    out, err = capsys.readouterr()
    assert (out, "cut short" in err) == ("ye\n", True)


def test_a_terminal_is_not_given_orders(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    writer("\x1b]0;title\x07\ttab\n</s>").continue_text("")
    assert capsys.readouterr().out == "\ufffd]0;title\ufffd\ttab\n\n"


@pytest.mark.parametrize("given", [b"\xff", b"x" * 101])
def test_what_cannot_be_read_from_a_pipe(given, monkeypatch):
    monkeypatch.setattr(terminal, "MAX_PROMPT", 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    with pytest.raises(UserError, match="prompt on standard input"):
        terminal._read_prompt()


def command(finished, corpus, *flags):
    return [sys.executable, ROOT / "launch.py", "generate", *smoke(finished, corpus), *flags]


def test_prompts_come_and_texts_go_through_pipes(finished, corpus):
    """The reader leaves after some characters, as `head` does."""
    flags = ["--prompt=-", "--max-tokens=100000", "--config.eval.context=4000"]
    process = subprocess.Popen(
        command(finished, corpus, *flags), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(b"the model\nreads")
    process.stdin.close()
    assert process.stdout.read(15) == b"the model\nreads"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_a_conversation_on_a_terminal(finished, corpus):
    """A random answer to a real line on a real terminal; Ctrl-D leaves with 0."""
    ours, theirs = pty.openpty()
    flags = ["--chat", "--config.eval.context=1024", "--max-tokens=8"]
    process = subprocess.Popen(
        command(finished, corpus, *flags), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, b"hello\n\x04")
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, err
    assert terminal.HELP in err.decode()
    assert 0 < len(out) < 200
