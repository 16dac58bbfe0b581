"""The endpoint as clients meet it: OpenAI's own, raw requests, many at once, and those that go away."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest

from completer_lab import CONTEXT, completer
from core.errors import UserError
from evals import serve
from lab import ROOT, launch, smoke
from model.sample import Sampling

pytest.importorskip("jinja2")
SAYS = "Hällo, <|im_start|>world. And so on</s>"
SLOW = 0.01  # seconds a token


@pytest.fixture(scope="module")
def start():
    """Starts servers on free ports; gives service and port."""
    running = []

    def start_one(*scripts, pause=0.0, **limits):
        listener = serve._bound("127.0.0.1", 0)
        port = listener.getsockname()[1]
        service = serve.Service(completer(*scripts, pause=pause), "tiny", Sampling(temperature=0), **limits)
        ready = threading.Event()
        server = serve.make_server(service, "127.0.0.1", port)
        service.server, server.ready = server, ready.set
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        assert ready.wait(20)
        return service, port

    yield start_one
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(start):
    return start(SAYS)[1]


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def post(port, body, path="/v1/completions", **headers):
    """Status and JSON of a raw request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


USER = [{"role": "user", "content": "hi"}]


def test_a_client_of_the_api_completes_and_converses(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    text = client.completions.create(model="tiny", prompt="ab", max_tokens=200, stop=["And", "x"])
    assert (text.choices[0].text, text.choices[0].finish_reason) == ("Hällo, world. ", "stop")
    assert (text.usage.prompt_tokens, text.usage.total_tokens) == (2, 2 + text.usage.completion_tokens)
    talk = client.chat.completions.create(model="tiny", messages=USER, max_completion_tokens=6)
    assert (talk.choices[0].message.content, talk.choices[0].finish_reason) == ("Hällo", "length")
    assert talk.choices[0].message.role == "assistant"


def test_a_stream_says_the_same_piece_by_piece(client):
    chunks = list(client.completions.create(model="tiny", prompt="ab", max_tokens=200, stream=True))
    texts = [chunk.choices[0].text for chunk in chunks]
    assert "".join(texts) == "Hällo, world. And so on"
    assert max(map(len, texts)) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    options = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, stop=",", **options))
    assert chunks[-1].usage.completion_tokens == 2 * 7
    for row in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == row]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "Hällo"
        assert own[-1].finish_reason == "stop"


def test_several_prompts_and_texts_at_once(client):
    reply = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=1)
    assert [(choice.index, choice.text) for choice in reply.choices] == [(i, "H") for i in range(4)]
    reply = client.completions.create(model="tiny", prompt=[[97, 98], [99]], max_tokens=1)
    assert reply.usage.prompt_tokens == 3


def test_the_template_gets_its_variables_and_parts_of_text(start):
    service, port = start("ok</s>")
    for extra, mode in [
        ({}, "/think"),
        ({"enable_thinking": False}, "/no_think"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "/no_think"),
    ]:
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        status, reply = post(port, {"messages": messages, **extra}, "/v1/chat/completions")
        assert (status, reply["choices"][0]["message"]["content"]) == (200, "ok")
        read = service.completer.tokenizer.decode(service.completer.decoder.prompts[0])
        assert f"Reasoning Mode: {mode}\n" in read
        assert "Be brief." in read
        assert "one two" in read


@pytest.mark.parametrize(
    ("body", "status", "field", "message"),
    [
        (b"{", 400, None, "not JSON"),
        (b"\xff", 400, None, "not JSON"),
        (b"[" * 100_000, 400, None, "not JSON"),
        (b'{"temperature": NaN}', 400, None, "NaN is not a number"),
        ([], 400, None, "not an object"),
        ({"promt": "x"}, 400, "promt", "did you mean prompt?"),
        ({"prompt": 3}, 400, "prompt", "a text or ids"),
        ({"prompt": [0, 259]}, 400, "prompt", "below 259"),
        ({"prompt": ["a"] * 9}, 400, "prompt", "up to 8"),
        ({"prompt": ["a"] * 4, "n": 3}, 400, "n", "asks for 12 texts"),
        ({"prompt": "x" * (CONTEXT + 1)}, 400, "prompt", "eval.context"),
        ({"prompt": "\ud800"}, 400, "prompt", "not Unicode"),
        ({"max_tokens": 0}, 400, "max_tokens", "from 1"),
        ({"max_tokens": True}, 400, "max_tokens", "whole number"),
        ({"temperature": -1}, 400, "temperature", "from 0"),
        ({"temperature": "hot"}, 400, "temperature", "a number"),
        ({"top_p": 0}, 400, "top_p", "above 0"),
        ({"stop": [""]}, 400, "stop", "1 to 256"),
        ({"stop": ["x"] * 17}, 400, "stop", "16 strings"),
        ({"stream": "yes"}, 400, "stream", "true or false"),
        ({"echo": True}, 400, "echo", "not supported"),
        ({"logprobs": 0}, 400, "logprobs", "not supported"),
        ({"model": "\ud800"}, 404, "model", "only 'tiny'"),
        ({"\ud800": 1}, 400, "\ufffd", "no such field"),
        ({"model": "gpt-x"}, 404, "model", "only 'tiny'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(port, body, status, field, message):
    found, reply = post(port, body)
    assert (found, reply["error"]["param"]) == (status, field), reply
    assert message in reply["error"]["message"]
    assert set(reply["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "messages", "missing"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hi"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages", "the role king is none of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "must be text"),
        ({"messages": USER, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "messages is not for"),
        ({"messages": USER, "chat_template_kwargs": {"self": 1}}, "messages", "'self'"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages", "eval.context"),
    ],
)
def test_conversations_that_cannot_be(port, body, field, message):
    status, reply = post(port, body, "/v1/chat/completions")
    assert (status, reply["error"]["param"]) == (400, field), reply
    assert message in reply["error"]["message"]


def test_fields_that_ask_for_nothing_are_taken(client):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "logprobs": None}
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1, **neutral).choices[0].text == "H"


def test_routes_methods_hosts_and_sizes(port):
    assert post(port, {}, "/v1/embeddings")[0] == 404
    assert post(port, b"{}", "/health")[0] == 405
    assert post(port, b'{"prompt": "a"}', **{"Content-Type": "text/plain"})[0] == 415
    status, reply = post(port, b" " * (serve.MAX_BODY + 1))
    assert (status, reply["error"]["type"]) == (413, "invalid_request_error")
    with urllib.request.urlopen(f"http://localhost:{port}/health") as reply:
        assert json.load(reply) == {"status": "ok", "model": "tiny", "waiting": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def eventually(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def open_stream(port, path="/v1/completions", body=None):
    """A connection whose reply has begun, or is waited for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = {"prompt": "a", "max_tokens": CONTEXT, "stream": True} if body is None else body
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_text_and_leaves_the_line(start, stream):
    service, port = start("on and on ", pause=SLOW)
    decoder = service.completer.decoder
    talking = open_stream(port, body={"prompt": "a", "max_tokens": CONTEXT, "stream": stream})
    eventually(lambda: decoder.steps > 3)
    waiting = open_stream(port)
    eventually(lambda: service.waiting == 1)
    waiting.close()
    eventually(lambda: service.waiting == 0)
    talking.close()
    eventually(lambda: not service.lock.locked())
    assert decoder.steps < CONTEXT // 2
    assert post(port, {"prompt": "a", "max_tokens": 2})[1]["choices"][0]["text"] == "on"


def test_the_line_is_bounded_and_kept_in_order(start):
    service, port = start("x", pause=SLOW, max_waiting=2)
    talking = open_stream(port)
    eventually(lambda: service.lock.locked())
    ended = []

    def ask(name):
        ended.append((name, post(port, {"prompt": "a", "max_tokens": 3})[0]))

    threads = []
    for name in range(2):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        eventually(lambda: service.waiting == len(threads))
    status, reply = post(port, {"prompt": "a"})
    assert (status, reply["error"]["type"]) == (429, "rate_limit_error")
    talking.close()
    for thread in threads:
        thread.join()
    assert ended == [(0, 200), (1, 200)]


def test_a_client_that_does_not_read_does_not_hold_the_line(start, monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 0.3)
    service, port = start("x")
    service.completer.decoder.context = 10_000_000
    service.completer.tokenizer.token_bytes = [b"x" * 50_000] * 259
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps({"prompt": "a", "max_tokens": 10_000_000, "stream": True}).encode()
    raw.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    )  # fmt: skip
    eventually(lambda: service.lock.locked())
    eventually(lambda: not service.lock.locked(), 60)
    raw.close()


def test_a_body_that_does_not_come_is_not_waited_for(start, monkeypatch):
    monkeypatch.setattr(serve, "PATIENCE", 0.3)
    _, port = start("x")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408


def test_what_is_under_way_at_the_end_is_cut_after_a_grace(start, monkeypatch):
    monkeypatch.setattr(serve, "GRACE", 0.2)
    service, port = start("on and on ", pause=SLOW)
    talking = open_stream(port).getresponse()
    waiting = open_stream(port, body={"prompt": "a"})
    eventually(lambda: service.waiting == 1)
    service.server.should_exit = True
    with pytest.raises(http.client.IncompleteRead):
        talking.read()
    assert waiting.getresponse().status == 503
    assert service.completer.decoder.steps < CONTEXT // 2


def test_a_bug_is_told_and_the_next_request_served(start, monkeypatch):
    service, port = start("x")
    with monkeypatch.context() as broken:
        broken.setattr(service.completer.decoder, "advance", lambda *_: 1 // 0)
        status, reply = post(port, {"prompt": "a"})
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert "ZeroDivisionError" in reply["error"]["message"]
    advance = service.completer.decoder.advance
    with monkeypatch.context() as broken:  # in the middle of a stream: it breaks off, and no end is claimed
        broken.setattr(
            service.completer.decoder,
            "advance",
            lambda *a: advance(*a) if service.completer.decoder.steps < 5 else 1 // 0,
        )
        reply = open_stream(port).getresponse()
        with pytest.raises(http.client.IncompleteRead) as seen:
            reply.read()
        assert b"[DONE]" not in seen.value.partial
    assert post(port, {"prompt": "a"})[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_verb_serves_until_a_signal(finished, corpus, number):
    """A trained model in a process of its own, which ends with 128 + the signal's number while a client listens."""
    flags = [*smoke(finished, corpus), "--port=0", "--config.eval.context=256"]
    command = [sys.executable, ROOT / "launch.py", "serve", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = iter(process.stderr.readline, "")
    port = next(int(found[1]) for line in said if (found := re.search(r"run at http://127.0.0.1:(\d+)/v1", line)))
    assert post(port, {"prompt": "the model", "max_tokens": 4, "seed": 1})[1]["usage"]["completion_tokens"] == 4
    reply = open_stream(port, body={"prompt": "a", "max_tokens": 200, "stream": True}).getresponse()
    assert reply.status == 200
    reply.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, ""), err
    assert "Traceback" not in err
    assert f"stopped by {number.name}" in err


def test_a_port_that_is_taken_and_one_that_cannot_be(finished, corpus):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = launch("serve", *smoke(finished, corpus), f"--port={taken.getsockname()[1]}")
    assert (result.returncode, "Address already in use" in result.stderr) == (2, True), result.stderr
    with pytest.raises(UserError, match="--port=99999"):
        serve._bound("127.0.0.1", 99999)
    with pytest.raises(UserError, match=r"cannot listen at no\.such\.invalid"):
        serve._bound("no.such.invalid", 0)


def test_a_missing_package_is_named():
    code = "import sys; sys.modules['uvicorn'] = None; import evals.serve"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "UserError: serve needs the package uvicorn; install it with `pip install -e .[serve]`" in result.stderr
