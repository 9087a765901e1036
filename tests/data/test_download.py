"""Fetching a data set, against a server on this machine: right or not there at all, and always with a reason."""

import hashlib
import re
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data import domains, download, glue
from data.download import LARGEST, cache_dir, download_file, download_from_zip, has_sha256
from data.registry import get_task
from data.spam import FILE, read_spam
from tests.helpers.servers import Server, zipped
from utils.errors import UserError

MEMBER = "SMSSpamCollection"
CONTENT = b"ham\thello\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


ARCHIVE = zipped({"readme": b"about", MEMBER: CONTENT})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")  # a proxy for the outside would be asked for 127.0.0.1 too
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    one = Server()
    yield one
    one.close()


def fetch(folder: Path, *urls: str) -> Path:
    return download_from_zip(urls, {MEMBER: has_sha256(SHA256)}, folder / MEMBER)


def complaint(folder: Path, *urls: str) -> str:
    """The one line of the error; nothing may be left behind but what the next download goes on from."""
    with pytest.raises(UserError) as caught:
        fetch(folder, *urls)
    message = str(caught.value)
    assert "\n" not in message
    left = list(folder.iterdir()) if folder.is_dir() else []
    assert left == ([folder / f".{MEMBER}.part"] if "are kept" in message else [])
    return message


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_good_archive_is_fetched_once(server: Server, tmp_path: Path):
    folder = tmp_path / "not" / "there" / "yet"
    url = server.serve("/good.zip", ARCHIVE)
    assert fetch(folder, url) == folder / MEMBER
    assert (folder / MEMBER).read_bytes() == CONTENT
    assert fetch(folder, url) == folder / MEMBER
    assert server.asked == ["/good.zip"]
    assert [path.name for path in folder.iterdir()] == [MEMBER]


def test_an_answer_without_a_length(server: Server, tmp_path: Path):
    url = server.serve_raw("/good.zip", b"HTTP/1.0 200 OK\r\n\r\n" + ARCHIVE)
    assert fetch(tmp_path, url).read_bytes() == CONTENT


def broken_deflate() -> bytes:
    """An archive whose table of contents is fine and whose compressed bytes aren't."""
    start = ARCHIVE.rindex(MEMBER.encode(), 0, ARCHIVE.index(b"PK\x01\x02")) + len(MEMBER)
    return ARCHIVE[:start] + b"\xff" * 20 + ARCHIVE[start + 20 :]


def wrong_checksum() -> bytes:
    plain = zipped({MEMBER: CONTENT}, zipfile.ZIP_STORED)
    return plain.replace(CONTENT, CONTENT.replace(b"ham", b"HAM", 1))


def encrypted() -> bytes:
    """The flag that says so is bit 0 of the field at offset 6 of the file's header and at 8 of the directory's entry."""
    plain = bytearray(zipped({MEMBER: CONTENT}))
    plain[6] |= 1
    plain[plain.index(b"PK\x01\x02") + 8] |= 1
    return bytes(plain)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (zipped({MEMBER: CONTENT + b"!"}), "expected " + SHA256),
        (zipped({"readme": b"about"}), f"the archive holds no {MEMBER}"),
        (zipped({"folder/" + MEMBER: CONTENT}), f"the archive holds no {MEMBER}"),
        (b"<html>please log in</html>", "web page"),
        (b"", "not a zip file"),
        (ARCHIVE[:-30], "not a zip file"),
        (broken_deflate(), "decompress"),
        (wrong_checksum(), "CRC"),
        (encrypted(), "encrypted"),
        (zipped({MEMBER: CONTENT}, zipfile.ZIP_LZMA), "packed by method 14; only stored and deflated"),
        (zipped({MEMBER: bytes(LARGEST + 1)}), f"unpack to {LARGEST + 1:,} bytes; at most {LARGEST:,}"),
    ],
    ids=[
        *("sha256", "no member", "member in a folder", "page", "nothing", "cut", "deflate", "crc", "encrypted", "method"),
        "too large",
    ],
)
def test_a_wrong_archive(server: Server, tmp_path: Path, body: bytes, reason: str):
    url = server.serve("/bad.zip", body)
    message = complaint(tmp_path, url)
    assert MEMBER in message and url in message
    assert reason in message


def test_a_wrong_sha256_shows_both(server: Server, tmp_path: Path):
    found = hashlib.sha256(b"other").hexdigest()
    message = complaint(tmp_path, server.serve("/bad.zip", zipped({MEMBER: b"other"})))
    assert f"sha256 is {found}, expected {SHA256}" in message


def test_an_address_that_is_not_there(server: Server, tmp_path: Path):
    url = server.url("/absent.zip")
    message = complaint(tmp_path, url)
    assert url in message and "404" in message


def test_a_download_that_breaks_off(server: Server, tmp_path: Path):
    url = server.serve("/short.zip", ARCHIVE[:100], length=len(ARCHIVE))
    message = complaint(tmp_path, url)
    assert url in message
    assert f"broke off after 100 of {len(ARCHIVE)} bytes" in message


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nonly this",
        b"this is no HTTP\r\n\r\n",
        b"",
        b"HTTP/1.0 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
    ids=["cut chunk", "no http", "silence", "too many headers"],
)
def test_a_server_that_speaks_nonsense(server: Server, tmp_path: Path, answer: bytes):
    url = server.serve_raw("/odd.zip", answer)
    assert url in complaint(tmp_path, url)


def test_a_server_that_refuses(server: Server, tmp_path: Path):
    url = f"http://127.0.0.1:{unused_port()}/good.zip"
    message = complaint(tmp_path, url)
    assert url in message and "can be reached" in message


def test_a_download_without_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.download.LARGEST", 50)
    url = server.serve_raw("/endless.zip", b"HTTP/1.0 200 OK\r\n\r\n" + ARCHIVE)
    assert "sends more than 50 bytes" in complaint(tmp_path, url)


def test_the_second_address_is_tried(server: Server, tmp_path: Path):
    good = server.serve("/good.zip", ARCHIVE)
    assert fetch(tmp_path, server.url("/absent.zip"), good).read_bytes() == CONTENT
    assert server.asked == ["/absent.zip", "/good.zip"]
    assert [path.name for path in tmp_path.iterdir()] == [MEMBER]


def test_each_address_has_its_own_reason(server: Server, tmp_path: Path):
    page, absent = server.serve("/page.zip", b"a page"), server.url("/absent.zip")
    message = complaint(tmp_path, page, absent)
    assert message.index(page) < message.index("not a zip file") < message.index(absent) < message.index("HTTP Error 404")


@pytest.fixture
def only_local_names(monkeypatch: pytest.MonkeyPatch):
    """Name look-up as on a machine that knows 127.0.0.1 alone, and without asking any real server for a name."""
    real = socket.getaddrinfo

    def look_up(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("only_local_names")
def test_one_unknown_host_does_not_spoil_the_others(server: Server, tmp_path: Path):
    good = server.serve("/good.zip", ARCHIVE)
    assert fetch(tmp_path, "http://nowhere.invalid/good.zip", good).read_bytes() == CONTENT


@pytest.mark.usefixtures("only_local_names")
def test_no_network_at_all(server: Server, tmp_path: Path):
    urls = ("http://nowhere.invalid/a.zip", "https://elsewhere.invalid/b.zip")
    message = complaint(tmp_path, *urls)
    assert "can be reached" in message and all(url in message for url in urls)


def test_members_cannot_leave_the_directory(server: Server, tmp_path: Path):
    folder = tmp_path / "a" / "b"
    evil = {"../evil": b"1", "/tmp/../" + str(tmp_path) + "/evil": b"2", "../../evil": b"3", "b/" + MEMBER: b"4"}
    url = server.serve("/evil.zip", zipped({**evil, MEMBER: CONTENT}))
    assert fetch(folder, url).read_bytes() == CONTENT
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / MEMBER]


def test_offline_asks_nobody(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = server.serve("/good.zip", ARCHIVE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("looked a name up"))
    message = complaint(tmp_path, url)
    assert "HF_HUB_OFFLINE" in message and MEMBER in message and str(tmp_path) in message
    assert server.asked == []
    (tmp_path / MEMBER).write_bytes(b"kept")
    assert fetch(tmp_path, url).read_bytes() == b"kept"  # what is there needs no network


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path):
    """Below a regular file, since root may write anywhere else."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as caught:
        fetch(tmp_path / "file" / "cache", server.serve("/good.zip", ARCHIVE))
    assert str(tmp_path / "file" / "cache" / MEMBER) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PEFT_FROM_SCRATCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "peft-from-scratch"
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path / "ours"))
    assert cache_dir() == tmp_path / "ours"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        read_spam(None)
    assert f"isn't in {tmp_path / 'ours' / FILE.parent} and HF_HUB_OFFLINE" in str(caught.value)


# --- plain files


def test_a_plain_file_is_fetched_once(server: Server, tmp_path: Path):
    url, check = server.serve("/plain.txt", CONTENT), has_sha256(SHA256)
    for _ in range(2):
        path = download_file((server.url("/absent.txt"), url), check, tmp_path / "folder" / "ours.txt")
        assert path == tmp_path / "folder" / "ours.txt" and path.read_bytes() == CONTENT
    assert server.asked == ["/absent.txt", "/plain.txt"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["ours.txt"]


@pytest.mark.parametrize(
    ("body", "length", "reason"),
    [
        (CONTENT + b"!", None, "expected " + SHA256),
        (CONTENT, len(CONTENT) + 9, f"broke off after {len(CONTENT)}"),
    ],
    ids=["sha256", "cut"],
)
def test_a_wrong_plain_file(server: Server, tmp_path: Path, body: bytes, length: int | None, reason: str):
    url = server.serve("/plain.txt", body, length)
    with pytest.raises(UserError) as caught:
        download_file((url,), has_sha256(SHA256), tmp_path / "ours.txt")
    assert url in str(caught.value) and reason in str(caught.value)
    assert not (tmp_path / "ours.txt").exists()


# --- the tasks, from the addresses that the sources name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFT_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name, archive", [("sst2", "SST-2"), ("rte", "RTE")])
def test_glue_is_fetched(server: Server, cache: Path, shared: Path, monkeypatch, name: str, archive: str):
    """From an archive as GLUE packs it: everything in a folder, with a test file that nothing here reads."""
    ours = shared / "data" / f"glue_{name}"
    members = {f"{archive}/{file}": (ours / file).read_bytes() for file in ("train.tsv", "dev.tsv", "test.tsv")}
    constant = f"{name.upper()}_URLS"
    assert getattr(glue, constant) == (f"https://dl.fbaipublicfiles.com/glue/data/{archive}.zip",)
    packed = zipped({f"{archive}/": b"", **members}, zipfile.ZIP_STORED)
    monkeypatch.setattr(glue, constant, (server.serve(f"/{archive}.zip", packed),))
    task = get_task(name)
    assert task.read(None) == task.read(shared / "data")
    assert stored(cache) == {f"glue_{name}/train.tsv", f"glue_{name}/dev.tsv"}
    task.read(None)
    assert len(server.asked) == 1


def test_another_version_of_rte_is_refused(server: Server, cache: Path, shared: Path, monkeypatch):
    """The official file's hash isn't known here, so that what is counted are the labels."""
    lines = (shared / "data" / "glue_rte" / "train.tsv").read_bytes().splitlines(keepends=True)
    url = server.serve("/RTE.zip", zipped({"RTE/train.tsv": b"".join(lines[:-1])}))
    monkeypatch.setattr(glue, "RTE_URLS", (url,))
    with pytest.raises(UserError, match=r"has \(\d+, \d+\) examples of each label, expected \(1249, 1241\)"):
        get_task("rte").read(None)
    assert stored(cache) == set()


DOMAINS = {
    "restaurant_sup": ("RESTAURANT_URL", ("train.json", "dev.json", "test.json")),
    "acl_sup": ("ACL_URL", ("train.jsonl", "dev.jsonl", "test.jsonl")),
    "agnews_sup": ("AGNEWS_URL", ("test.csv",)),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_the_domains_are_fetched(server: Server, cache: Path, shared: Path, monkeypatch, name: str):
    """Served at the paths that SOURCES.md names: repository, commit, file."""
    constant, files = DOMAINS[name]
    sources = (shared / "data" / "SOURCES.md").read_text()
    for file in files:
        found = re.search(rf"## {name}/{file}\n- repo: (\S+)  commit: (\S+)  path: (\S+)\n", sources)
        server.serve("/" + "/".join(found.groups()), (shared / "data" / name / file).read_bytes())
    monkeypatch.setattr(domains, constant, getattr(domains, constant).replace(domains.RAW, server.url("")))
    task = get_task(name)
    assert task.read(None) == task.read(shared / "data")
    assert stored(cache) == {f"{name}/{file}" for file in files}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get_task(name.replace("_sup", "_fs")).read(None) == task.read(None)  # nothing is fetched twice
