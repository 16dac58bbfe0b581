"""Where servers may send us on to: not to files of this machine, nor from the public net into a private one."""

import re
import socket

import pytest

from core.errors import UserError
from data.document import Document
from data.sources import download, remote


def read_all(root):
    return [item for group in remote.partitions(root) for item in remote.read(root, group)]


def texts(root):
    return sorted(item.text for item in read_all(root) if isinstance(item, Document))


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://example.com/a.txt", "data:text/plain,x", "gopher://a/"]
)
def test_a_redirect_leads_to_no_other_kind_of_place(server, target):
    server.moved["/a.txt"] = target
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        read_all(f"{server.url}/a.txt")
    assert not server.waits


def test_a_redirect_may_lead_to_another_address(server):
    server.files["/b"] = b"text"
    server.moved |= {"/a.txt": f"{server.url}/b", "/c.txt": "/c.txt"}
    assert texts(f"{server.url}/a.txt") == ["text"]
    with pytest.raises(UserError, match="cannot be read"):
        read_all(f"{server.url}/c.txt")


def test_a_redirect_does_not_give_up_encryption():
    request = download.urllib.request.Request("https://example.com/a")
    with pytest.raises(PermissionError, match="not followed"):
        download._Redirects().redirect_request(request, None, 302, "", {}, "http://example.com/a")


NAMES = {
    "public.example": ["93.184.215.14"],
    "other.example": ["2606:4700::1111", "1.1.1.1"],
    "inside.example": ["10.0.0.7"],
    "both.example": ["1.1.1.1", "192.168.0.1"],
}


@pytest.fixture
def reached(server, monkeypatch):
    """Names stand for the addresses of `NAMES`, and wherever one connects to, the server answers: the addresses."""
    connect, reached = socket.create_connection, []

    def look_up(host, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES.get(host, [host])]

    def answer(place, *options):
        reached.append(place[0])
        return connect(("127.0.0.1", server.server_port), *options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", answer)
    return reached


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("[::1]", "[fe80::1%251]", "[fd00::1]", "[::ffff:127.0.0.1]", "inside.example", "inside.example:8080"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_redirect_from_a_public_address_leads_to_no_private_one(server, reached, scheme, host):
    server.moved["/a.txt"] = f"{scheme}://{host}/b"
    said = rf"http://public\.example/a\.txt redirects to {re.escape(server.moved['/a.txt'])} at .*no public address"
    with pytest.raises(UserError, match=said):
        read_all("http://public.example/a.txt")
    assert reached == NAMES["public.example"]
    assert not server.waits


def test_nor_does_one_of_several(server, reached):
    server.files |= {"/list.paths": b"a.txt\nb.txt", "/b.txt": b"text", "/c": b"text"}
    server.moved["/a.txt"] = "http://other.example/c"
    assert texts("http://public.example/list.paths") == ["text", "text"]
    server.moved |= {"/b.txt": "http://other.example/d", "/d": "http://169.254.169.254/c"}
    with pytest.raises(UserError, match=r"other\.example/d redirects to http://169\.254\.169\.254/c at 169"):
        read_all("http://public.example/list.paths")
    assert set(reached) == {*NAMES["public.example"], NAMES["other.example"][0]}


def test_a_private_address_that_the_config_names_is_read(server, reached):
    server.files["/b"] = b"text"
    server.moved["/a.txt"] = "http://10.0.0.8/b"
    assert texts("http://inside.example/a.txt") == ["text"]
    server.moved |= {"/a.txt": "http://public.example/c", "/c": "http://10.0.0.8/b"}
    with pytest.raises(UserError, match=r"public\.example/c redirects to http://10\.0\.0\.8/b"):
        read_all("http://inside.example/a.txt")
    assert reached[:2] == ["10.0.0.7", "10.0.0.8"]


def test_the_address_that_is_looked_at_is_the_one_that_is_reached(server, reached, monkeypatch):
    """A server of names that gives a private address beside a public one, or instead of it the next time."""
    server.files["/b"] = b"text"
    server.moved["/a.txt"] = "http://both.example/b"
    assert texts("http://public.example/a.txt") == ["text"]
    assert "192.168.0.1" not in reached
    answer = socket.create_connection

    def fail(place, *options):
        if place[0] == "1.1.1.1":
            raise ConnectionRefusedError
        return answer(place, *options)

    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(UserError, match=r"both\.example/b at 192\.168\.0\.1"):
        read_all("http://public.example/a.txt")
    server.files["/c.txt"] = b"text"
    assert texts("http://both.example/c.txt") == ["text"]  # its second address, since the first does not answer


def test_what_is_asked_of_a_proxy_is_looked_at(server, reached, monkeypatch):
    """It may be anywhere; the names it looks up itself."""
    monkeypatch.setenv("http_proxy", "http://10.0.0.1:3128")
    server.files["http://other.example/b"] = b"text"
    server.moved["http://public.example/a.txt"] = "http://other.example/b"
    assert texts("http://public.example/a.txt") == ["text"]
    server.moved["http://public.example/a.txt"] = "http://169.254.169.254/b"
    with pytest.raises(UserError, match=r"redirects to http://169"):
        read_all("http://public.example/a.txt")
    monkeypatch.setenv("no_proxy", "inside.example")
    server.moved["http://public.example/a.txt"] = "http://inside.example/b"
    with pytest.raises(UserError, match=r"inside\.example/b at 10\.0\.0\.7"):
        read_all("http://public.example/a.txt")
    assert set(reached) == {"10.0.0.1"}
