"""Where checkpoints come from: shipped, cached, downloaded from a hub that speaks on 127.0.0.1, or nowhere.

huggingface_hub reads its environment once, when it is imported; so each situation runs in a process of its own.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from model import from_pretrained
from tests.helpers.paths import ROOT
from tests.helpers.servers import COMMIT, NOWHERE, FakeHub

pytestmark = pytest.mark.not_quick  # each situation is a process of its own

# Prints what became of `{call}` as JSON. The first lines keep model/__init__.py, and so PyTorch, from being imported.
SCRIPT = """
import json, sys, time, types
sys.modules["model"] = package = types.ModuleType("model")
package.__path__ = ["model"]
from utils.errors import UserError
from model import hub
started, result = time.time(), dict(value=None, error=None)
try:
    result["value"] = str({call})
except UserError as error:
    result["error"] = str(error)
print(json.dumps(result | dict(seconds=time.time() - started)))
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python code with a cache of its own."""

    def start(code: str, endpoint: str = NOWHERE, offline: bool = False) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
        if offline:
            environment["HF_HUB_OFFLINE"] = "1"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert not re.search(r"\d%\|", done.stderr)  # no progress bars where standard error is no terminal
        return done.stdout

    return start


@pytest.fixture
def attempt(run):
    """What became of a call to hub: value, error, seconds."""

    def start(call: str, endpoint: str = NOWHERE, offline: bool = False) -> dict:
        result = json.loads(run(SCRIPT.replace("{call}", call), endpoint, offline))
        assert result["error"] is None or len(result["error"].splitlines()) == 1
        return result

    return start


# A hub


@pytest.fixture
def fake_hub(checkpoint):
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    serving = FakeHub(files | {"README.md": b"# tiny", "pytorch_model.bin": b"pickled", "onnx/model.onnx": b"0"})
    yield serving
    serving.server.shutdown()
    serving.server.server_close()


def test_a_download_is_whole_and_then_served_without_network(fake_hub, run, attempt, checkpoint):
    code = 'from model import from_pretrained\nprint(from_pretrained("owner/tiny").token_embedding.weight.sum().item())'
    downloaded = run(code, fake_hub.endpoint)
    assert float(downloaded) == pytest.approx(from_pretrained(checkpoint).token_embedding.weight.sum().item())
    fetched = {line.rsplit("/", 1)[1] for line in fake_hub.requests if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}  # and nothing for other libraries

    asked = len(fake_hub.requests)
    for how in ({"endpoint": fake_hub.endpoint}, {"endpoint": NOWHERE}, {"offline": True}):
        found = attempt("hub.locate('owner/tiny')", **how)["value"]
        assert Path(found, "model.safetensors").read_bytes() == fake_hub.files["model.safetensors"]
    assert attempt("hub.locate('owner/tiny', files=hub.TOKENIZER_FILES)", offline=True)["value"] == found
    # Whether the default model is cached decides between it and the shipped one.
    assert attempt("hub.cached('owner/tiny')", offline=True)["value"] == found
    assert len(fake_hub.requests) == asked  # what is in the cache costs no request


def test_a_published_name_is_a_repository_under_its_new_or_old_name(fake_hub, attempt):
    call = "(hub.REPOSITORIES.update({'gpt2-small': (%r, 'owner/old')}), hub.locate('gpt2-small'))[1]"
    assert attempt(call % "owner/tiny", fake_hub.endpoint)["value"]
    assert any("/owner/tiny/resolve/" in request for request in fake_hub.requests)
    assert not any("/owner/old/" in request for request in fake_hub.requests)  # only looked up in the cache
    attempt("hub.locate('owner/old')", fake_hub.endpoint)
    assert "owner--old" in attempt(call % "owner/elsewhere", offline=True)["value"]


def test_a_repository_without_an_owner_is_fetched(fake_hub, attempt):
    assert attempt("hub.locate('distilgpt2')", fake_hub.endpoint)["value"]
    assert any("/distilgpt2/resolve/" in request for request in fake_hub.requests)
    assert "distil can't be downloaded" in attempt("hub.locate('distil')", fake_hub.endpoint)["error"]


def test_content_that_differs_from_its_sha256_is_refused_and_removed(fake_hub, attempt, tmp_path):
    fake_hub.etags["model.safetensors"] = "ab" * 32
    first = attempt("hub.locate('owner/tiny')", fake_hub.endpoint)
    assert "model.safetensors" in first["error"] and "ab" * 32 in first["error"]
    assert not list((tmp_path / "home").rglob("*ab" * 32))
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    assert attempt("hub.cached('owner/tiny')", offline=True)["value"] == "None"
    del fake_hub.etags["model.safetensors"]
    fake_hub.etags["model.safetensors"] = hashlib.sha256(fake_hub.files["model.safetensors"]).hexdigest()
    assert attempt("hub.locate('owner/tiny')", fake_hub.endpoint)["value"]  # "try again" is good advice


@pytest.mark.parametrize("damaged", [False, True])
def test_a_blob_that_the_client_shares_between_repositories(fake_hub, attempt, tmp_path, damaged):
    """Since huggingface_hub 2 blobs/<sha256> may be a link into a store with names that are other hashes (Xet's)."""
    content, xet_hash = fake_hub.files["model.safetensors"], "cd" * 32
    store = tmp_path / "home/hub/blobs"
    (store / "cd").mkdir(parents=True)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    (store / "cd" / xet_hash).write_bytes(bytes(len(content)) if damaged else content)
    fake_hub.xet["model.safetensors"] = xet_hash
    result = attempt("hub.locate('owner/tiny')", fake_hub.endpoint)
    assert not any("resolve" in line and "safetensors" in line for line in fake_hub.requests)  # it did take the store's
    if damaged:
        assert fake_hub.etags["model.safetensors"] in result["error"]
        assert not (store / "cd" / xet_hash).exists()
    else:
        assert Path(result["value"], "model.safetensors").read_bytes() == content


def test_a_connection_lost_on_the_way_is_an_error_in_one_line(fake_hub, attempt):
    fake_hub.hang_up_on = "/resolve/.*safetensors"
    error = attempt("hub.locate('owner/tiny')", fake_hub.endpoint)["error"]
    assert "owner/tiny" in error and fake_hub.endpoint in error
    fake_hub.hang_up_on = None
    assert attempt("hub.locate('owner/tiny')", fake_hub.endpoint)["value"]  # half a download doesn't count as cached


# What goes wrong on the way


def refuse(status: int, code: str = "") -> Callable[[BaseHTTPRequestHandler], None]:
    def act(request):
        request.send_response(status)
        for name, value in {"Content-Length": "0", "X-Error-Code": code, "X-Repo-Commit": COMMIT}.items():
            request.send_header(name, value)
        request.end_headers()

    return act


def stall(request):
    """A quarter of what was announced, and then nothing, until the client hangs up."""
    half(request)
    with contextlib.suppress(OSError):
        request.connection.recv(1)


def half(request):
    request.send_response(200)
    request.send_header("Content-Length", "4000")
    request.end_headers()
    request.wfile.write(bytes(1000))
    request.wfile.flush()
    request.close_connection = True


def short(request):
    FakeHub.send(request, bytes(1000))


QUICK = "(setattr(time, 'sleep', lambda _: None), setattr(hub.constants, 'HF_HUB_DOWNLOAD_TIMEOUT', 0.3), %s)[-1]"
LOCATE = "hub.locate('owner/tiny@v9')"
FULL = f"(__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (20000, 20000)), {LOCATE})[-1]"
FAILURES = {
    "gated": ("HEAD .*safetensors", refuse(403, "GatedRepo"), LOCATE, "it is gated; ask for access on http.*/owner/tiny, "),
    "not there": ("/api/models", refuse(404, "RepoNotFound"), LOCATE, "there is no such repository, or it is private"),
    "no revision": ("/api/models", refuse(404, "RevisionNotFound"), LOCATE, "the repository has no such revision"),
    "server error": ("GET .*safetensors", refuse(503), LOCATE, "the server answered 503; try again later"),
    "error of metadata": ("HEAD .*safetensors", refuse(500), LOCATE, "the server answered 500; try again later"),
    "error of api": ("/revision/", refuse(502), LOCATE, "the server answered 502; try again later"),
    "stall": ("GET .*safetensors", stall, LOCATE, "nothing came for 0.3 seconds; try again, .*HF_HUB_DOWNLOAD_TIMEOUT"),
    "wrong size": ("GET .*safetensors", short, LOCATE, "file should be of size .* try again"),
    "disk full": ("nothing", short, FULL, "no room in .*hub; make some, or set HF_HOME to a directory elsewhere"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_said_in_one_line_with_what_to_do(fake_hub, attempt, tmp_path, failure):
    pattern, act, call, said = FAILURES[failure]
    fake_hub.instead = [(pattern, act)]
    result = attempt(QUICK % call, fake_hub.endpoint)
    assert re.search(f"owner/tiny@v9 can't be downloaded from {fake_hub.endpoint}: .*{said}", result["error"])
    assert not list((tmp_path / "home").rglob("*.incomplete"))
    if failure == "stall":
        fake_hub.instead = []
        assert attempt(LOCATE, fake_hub.endpoint)["value"]


def test_what_passes_is_mended_by_the_client(fake_hub, attempt):
    """A cut, a stall and an error of the server, once each."""
    acts = [half, stall, refuse(429)]

    def act(request):
        if acts:
            return acts.pop(0)(request)
        fake_hub.instead = []
        return fake_hub.answer(request)

    fake_hub.instead = [("GET .*safetensors", act)]
    folder = attempt(QUICK % LOCATE, fake_hub.endpoint)["value"]
    assert Path(folder, "model.safetensors").read_bytes() == fake_hub.files["model.safetensors"]


def test_the_hash_is_checked_where_the_cache_has_no_links(fake_hub, attempt, tmp_path):
    call = f"(setattr(hub.constants, 'HF_HUB_DISABLE_SYMLINKS', True), {LOCATE})[-1]"
    good = fake_hub.etags["model.safetensors"]
    fake_hub.etags["model.safetensors"] = "ab" * 32
    assert "ab" * 32 in attempt(call, fake_hub.endpoint)["error"]
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    fake_hub.etags["model.safetensors"] = good
    found = Path(attempt(call.replace("@v9", ""), fake_hub.endpoint)["value"], "model.safetensors")
    assert found.is_file() and not found.is_symlink()


def test_a_model_that_cannot_be_read_is_refused_before_its_weights_come(fake_hub, run):
    fake_hub.files["config.json"] = b'{"model_type": "t5"}'
    code = 'from model import architecture\ntry: architecture("owner/tiny")\nexcept ValueError as error: print(error)'
    assert "describes a model of type 't5'" in run(code, fake_hub.endpoint)
    assert not any("safetensors" in request for request in fake_hub.requests)


def test_a_repository_with_none_of_the_files(fake_hub, attempt):
    fake_hub.files.clear()
    assert "owner/tiny holds no safetensors" in attempt("hub.locate('owner/tiny')", fake_hub.endpoint)["error"]


def test_a_revision_is_what_is_asked_for(fake_hub, attempt):
    name = "owner/tiny@refs/pr/7"
    found = attempt(f"hub.locate({name!r})", fake_hub.endpoint)["value"]
    assert any("/api/models/owner/tiny/revision/refs%2Fpr%2F7" in request for request in fake_hub.requests)
    assert attempt(f"hub.locate({name!r})", offline=True)["value"] == found
    assert "isn't in the Hugging Face cache" in attempt("hub.locate('owner/tiny')", offline=True)["error"]  # another one


def test_a_repository_with_pickled_weights_only_says_what_to_do(fake_hub, attempt):
    del fake_hub.files["model.safetensors"]
    error = attempt("hub.locate('owner/tiny')", fake_hub.endpoint)["error"]
    for said in (
        "owner/tiny holds no safetensors",
        "owner/tiny@refs/pr/N",
        "--checkpoint",
        "never loaded",
        "python tools/bin_to_safetensors.py",
    ):
        assert said in error
    assert not any("pytorch_model.bin" in request for request in fake_hub.requests)
    assert Path(attempt("hub.locate('owner/tiny', files=hub.TOKENIZER_FILES)", fake_hub.endpoint)["value"]).is_dir()


# No hub


def test_offline_says_at_once_what_to_do(attempt, tmp_path):
    result = attempt("hub.locate('gpt2-small')", offline=True)
    assert result["seconds"] < 1
    for said in ("gpt2-small", "HF_HUB_OFFLINE", str(tmp_path / "home"), "--checkpoint"):
        assert said in result["error"]


@pytest.fixture
def silent_endpoint():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_endpoint_that_is_not_there(attempt):
    result = attempt("hub.locate('gpt2-small')")
    assert result["seconds"] < 5
    assert NOWHERE in result["error"]


def test_an_endpoint_that_never_answers(attempt, silent_endpoint):
    result = attempt("(hub.why_no_hub(), hub.locate('gpt2-small'))", silent_endpoint)  # asked twice, waited for once
    assert 1 < result["seconds"] < 5
    assert silent_endpoint in result["error"]
