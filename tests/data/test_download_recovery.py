"""Downloads of data sets against a server that fails on the way: what can go on goes on, the rest is said in one line."""

import hashlib
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import download
from data.download import download_file, has_sha256
from utils.errors import UserError

CONTENT = bytes(range(256)) * 300
CHECK = has_sha256(hashlib.sha256(CONTENT).hexdigest())
FILE = "data.bin"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Takes one answer after the other from the server's list; the last one stays."""

    def do_HEAD(self):
        self.send(200, b"")

    def do_GET(self):
        script, asked = self.server.script, self.server.asked
        asked.append(self.headers.get("Range"))
        script[min(len(asked), len(script)) - 1](self)

    def send(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> int:
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def log_message(self, *_):
        pass


def whole(handler: Handler) -> None:
    """Takes no notice of Range."""
    handler.send(200, CONTENT)


def cut(n: int) -> Answer:
    """What was asked for, but its first n bytes alone."""

    def answer(handler: Handler) -> None:
        begin = handler.begin()
        if begin >= len(CONTENT):
            return handler.send(416, b"", Content_Range=f"bytes */{len(CONTENT)}")
        rest = CONTENT[begin:]
        headers = {"Content_Range": f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"} if begin else {}
        handler.send(206 if begin else 200, rest[:n], len(rest), **headers)

    return answer


ranged = cut(len(CONTENT))


def cut_whole(handler: Handler) -> None:
    """Takes no notice of Range, and breaks off."""
    handler.send(200, CONTENT[:500], len(CONTENT))


def stalled(n: int) -> Answer:
    def answer(handler: Handler) -> None:
        cut(n)(handler)
        handler.server.over.wait(10)

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send(code, b"an explanation")


def wrong_range(handler: Handler) -> None:
    handler.send(206, CONTENT[5:], Content_Range=f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")


def page(handler: Handler) -> None:
    handler.send(200, b"\n<!DOCTYPE html><html>please log in</html>", Content_Type="text/html")


def other(handler: Handler) -> None:
    handler.send(200, b"other bytes")


def circle(handler: Handler) -> None:
    handler.send(302, b"", Location=handler.path)


def to_a_file(handler: Handler) -> None:
    handler.send(302, b"", Location="file:///etc/hostname")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "STALL", 0.5)
    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.script, one.asked, one.over = [whole], [], threading.Event()
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield one
    one.over.set()
    one.shutdown()
    one.server_close()


@pytest.fixture
def fetch(server: ThreadingHTTPServer, tmp_path: Path) -> Callable[..., list[str | None]]:
    """fetch(answer, ...): the file arrives and nothing else does; gives the ranges that were asked for."""

    def start(*script: Answer) -> list[str | None]:
        server.script[:], server.asked[:] = script, []
        assert download_file((url(server),), CHECK, tmp_path / FILE) == tmp_path / FILE
        assert (tmp_path / FILE).read_bytes() == CONTENT
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
        return list(server.asked)

    return start


@pytest.fixture
def fail(server: ThreadingHTTPServer, tmp_path: Path) -> Callable[..., str]:
    """fail(answer, ...): the one line of the error. A file under the final name would be taken for the real one."""

    def start(*script: Answer) -> str:
        server.script[:], server.asked[:] = script, []
        with pytest.raises(UserError) as caught:
            download_file((url(server),), CHECK, tmp_path / FILE)
        message = str(caught.value)
        assert "\n" not in message and FILE in message
        assert not (tmp_path / FILE).exists()
        return message

    return start


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/{FILE}"


def part(folder: Path) -> Path:
    return folder / f".{FILE}.part"


def test_a_cut_connection_goes_on_where_it_was(fetch):
    assert fetch(cut(1000), cut(5000), ranged) == [None, "bytes=1000-", "bytes=6000-"]


def test_an_interrupted_download_goes_on_in_the_next_run(fetch, fail, server, tmp_path):
    message = fail(cut(1000), status(503))
    assert "503" in message and "1000 bytes are kept" in message
    assert part(tmp_path).read_bytes() == CONTENT[:1000]
    assert fetch(ranged) == ["bytes=1000-"]


def test_a_server_without_ranges_sends_the_whole_again(fetch):
    assert fetch(cut(1000), whole) == [None, "bytes=1000-"]


def test_a_server_that_always_breaks_off_is_given_up(fail, server):
    message = fail(cut_whole)
    assert f"broke off after 500 of {len(CONTENT)} bytes" in message
    assert len(server.asked) == 1 + download.TRIES  # the first one did bring something


def test_many_cuts_are_no_failure_while_something_comes(fetch):
    assert len(fetch(cut(len(CONTENT) // 12))) > 3 * download.TRIES


def test_a_stall_is_noticed_and_gone_on_from(fetch):
    assert fetch(stalled(100), ranged) == [None, "bytes=100-"]


def test_a_server_that_only_stalls(fail, server):
    begun = time.monotonic()
    message = fail(stalled(0))
    assert "stalled: nothing came for 0.5 seconds" in message
    assert time.monotonic() - begun < 5 and len(server.asked) == download.TRIES


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_what_may_pass_is_asked_again(fetch, code):
    assert fetch(status(code), ranged) == [None, None]


@pytest.mark.parametrize("code", [403, 404, 410, 501])
def test_an_error_of_the_server_is_said(fail, server, tmp_path, code):
    assert str(code) in fail(status(code))
    assert len(server.asked) == (download.TRIES if code >= 500 else 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answer, said", [(page, "web page"), (other, "sha256 is"), (circle, "circle"), (to_a_file, "nowhere")]
)
def test_what_is_not_the_file_is_removed_and_named(fail, server, tmp_path, answer, said):
    message = fail(answer)
    assert said in message and url(server) in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stale", [b"of another version", CONTENT + b"longer", CONTENT, b"\0" * len(CONTENT)])
def test_a_part_that_does_not_fit_costs_one_more_download(fetch, tmp_path, stale):
    part(tmp_path).write_bytes(stale)
    asked = fetch(ranged)
    assert asked == [f"bytes={len(stale)}-", None]


def test_another_range_than_asked_for_is_not_appended(fetch, tmp_path):
    part(tmp_path).write_bytes(CONTENT[:1000])
    assert fetch(wrong_range, ranged) == ["bytes=1000-", None]


def test_a_second_address_goes_on_from_the_first(server, tmp_path):
    server.script[:] = [cut(1000), status(404), ranged]
    download_file((url(server), url(server) + "?mirror"), CHECK, tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1000-"]


def test_a_full_disk_is_said_and_nothing_stays(fail, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))  # the kernel refuses to write more
    try:
        message = fail(whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search("can't store .*data.bin: File too large; make room, or set PEFT_FROM_SCRATCH_CACHE", message)
    assert list(tmp_path.iterdir()) == []


def two_at_once(server: ThreadingHTTPServer, folder: Path, *script: Answer) -> list[Path | str]:
    """Download one file twice at once. Return the file or the error of each.

    A lock is of an open file, so that threads stand for processes.
    """
    server.script[:] = script

    def one(_: int) -> Path | str:
        try:
            return download_file((url(server),), CHECK, folder / FILE)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(one, range(2)))


def test_two_at_once_download_once(server, tmp_path, capsys):
    def slow(handler):
        time.sleep(0.3)
        whole(handler)

    assert two_at_once(server, tmp_path, slow) == [tmp_path / FILE] * 2
    assert (tmp_path / FILE).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert server.asked == [None]
    assert "waiting for another process" in capsys.readouterr().err


def test_the_second_takes_over_where_the_first_fails(server, tmp_path):
    results = two_at_once(server, tmp_path, stalled(1000), status(404), ranged)
    failed, found = sorted(results, key=lambda result: isinstance(result, Path))  # either may come first
    assert "404" in failed and found == tmp_path / FILE
    assert server.asked == [None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("missing", ["module", "support"])
def test_without_locks_each_has_a_part_of_its_own(fetch, fail, tmp_path, monkeypatch, missing):
    if missing == "module":
        monkeypatch.setattr(download, "fcntl", None)
    else:
        monkeypatch.setattr(download.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    assert "kept" not in fail(cut(1000), status(404))
    assert list(tmp_path.iterdir()) == []
    assert fetch(cut(1000), ranged) == [None, "bytes=1000-"]
