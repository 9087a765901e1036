"""Serve files on 127.0.0.1: with given answers, or as the Hugging Face hub does."""

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
POLL = {"poll_interval": 0.01}  # seconds; shutting down waits for the next one
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the port of the discard service


class FakeHub:
    """Serve one repository. Tests change what is said about its files (`etags`, `xet`) and when the server hangs up."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.etags = {
            name: (hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1)(content).hexdigest()
            for name, content in files.items()
        }
        self.xet: dict[str, str] = {}
        self.hang_up_on = None  # a regular expression of paths
        self.instead: list[tuple[str, Callable[[BaseHTTPRequestHandler], None]]] = []  # for other paths, what to do
        self.requests: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs=POLL, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        path = re.sub(r"^(/api/models)?/distilgpt2(?=/|$)", r"\1/owner/tiny", path)  # a repository without an owner
        if self.hang_up_on and re.search(self.hang_up_on, path):
            request.close_connection = True
            return
        for pattern, act in self.instead:
            if re.search(pattern, f"{request.command} {path}"):
                return act(request)
        if re.fullmatch("/api/(models|datasets)/[^/]+/[^/]+(/revision/[^/]+)?", path):
            about = {"id": "owner/tiny", "sha": COMMIT, "siblings": [self.sibling(name) for name in self.files]}
            self.send(request, json.dumps(about).encode())
        elif re.fullmatch(f"/api/(models|datasets)/[^/]+/[^/]+/tree/{COMMIT}", path):
            self.send(request, json.dumps([self.tree_entry(name) for name in self.files]).encode())
        elif (found := re.fullmatch(f"(?:/datasets)?/[^/]+/[^/]+/resolve/{COMMIT}/(.+)", path)) and found[1] in self.files:
            self.send(request, self.files[found[1]], {"ETag": f'"{self.etags[found[1]]}"', "X-Repo-Commit": COMMIT})
        else:
            request.send_error(404)

    def sibling(self, name: str) -> dict:
        entry = self.tree_entry(name)
        lfs = {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}} if "lfs" in entry else {}
        return {"rfilename": name, "size": entry["size"], "blobId": entry["oid"], **lfs}

    def tree_entry(self, name: str) -> dict:
        size, etag = len(self.files[name]), self.etags[name]
        entry = {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(self.files[name]).hexdigest()}
        if len(etag) == 64:
            entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 130}
        return entry | ({"xetHash": self.xet[name]} if name in self.xet else {})

    @staticmethod
    def send(request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Answer each path with the raw bytes given for it, status line and headers included, and record the paths."""

    def __init__(self):
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                self.wfile.write(outer.answers.get(self.path, b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"))

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs=POLL, daemon=True).start()

    def serve(self, path: str, body: bytes, length: int | None = None) -> str:
        length = len(body) if length is None else length
        return self.serve_raw(path, f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + body)

    def serve_raw(self, path: str, answer: bytes) -> str:
        self.answers[path] = answer
        return self.url(path)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def close(self):
        self._http.shutdown()
        self._http.server_close()
