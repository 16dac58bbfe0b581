"""A server of files for tests, in this process."""

import http.server
import threading

import pytest

from data.sources import download


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files` of its server, by turns in the manners that `manners` lists."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        manners = self.server.manners
        self.server.asked.append((self.path, self.headers.get("Range")))
        manner, value = manners.pop(0) if manners else ("well", None)
        if manner == "status":
            self.send_error(value)
        elif manner == "cut":
            self.answer(self.server.files[self.path], most=value)
        else:
            self.answer(self.server.files.get(self.path))

    def answer(self, body, most=None):
        moved = self.server.moved.get(self.path)
        if moved:
            self.send_response(302)
            self.send_header("Location", moved)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path not in self.server.files:
            self.send_error(404)
            return
        whole = self.server.files[self.path]
        start = 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == self.server.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        if body:
            self.wfile.write(body[start:][:most])
            if most is not None:
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.moved, server.manners, server.asked, server.tag = {}, {}, [], [], '"one"'
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.waits = []
    monkeypatch.setattr(download.time, "sleep", server.waits.append)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
