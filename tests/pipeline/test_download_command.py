"""`--download` prepares a machine: afterwards a run needs no network."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from data.registry import TASKS
from model import hub
from tests.helpers.paths import ROOT
from tests.helpers.servers import NOWHERE, FakeHub, Server, zipped
from utils.errors import UserError

# The command line with another address of the messages, and with the hash of what lies there.
SCRIPT = """
import sys
from data import spam
from experiments import main, run_program
spam.URLS, spam.SHA256 = (sys.argv[1],), sys.argv[2]
run_program(lambda: main(sys.argv[3:]))
"""


def test_what_was_downloaded_is_enough_without_network(small_checkpoint, small_data, tmp_path):
    messages = (small_data / "sms_spam" / "SMSSpamCollection").read_bytes()
    fake_hub, server = FakeHub({file.name: file.read_bytes() for file in small_checkpoint.iterdir()}), Server()
    fake_hub.files["pytorch_model.bin"], fake_hub.etags["pytorch_model.bin"] = b"pickled", "0" * 40
    address = server.serve("/messages.zip", zipped({"SMSSpamCollection": messages}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "PEFT_FROM_SCRATCH_CACHE": str(tmp_path / "cache"), "no_proxy": "*"}

    def start(*words: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment | more, capture_output=True, text=True)

    try:
        words = ("-c", SCRIPT, address, hashlib.sha256(messages).hexdigest(), "--download", "owner/tiny", "spam")
        done = start(*words, HF_ENDPOINT=fake_hub.endpoint)
    finally:
        fake_hub.server.shutdown()
        fake_hub.server.server_close()
        server.close()
    assert (done.returncode, done.stderr) == (0, "")
    model, *files = done.stdout.split("spam: ")[0].splitlines()
    assert model.startswith("owner/tiny: ") and str(tmp_path / "hf" / "hub") in model
    assert sorted(line.split()[-1] for line in files) == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    size = (small_checkpoint / "model.safetensors").stat().st_size
    assert f"{size / 1e6:.1f} MB  model.safetensors" in done.stdout
    assert f"in {tmp_path / 'cache' / 'sms_spam'}" in done.stdout and "MB  SMSSpamCollection" in done.stdout
    assert not list(tmp_path.rglob("pytorch_model.bin"))

    flags = ["--model", "owner/tiny", "--dataset", "spam", "--max_steps", "1", "--device", "cpu", "--output_dir"]
    done = start("experiments.py", *flags, str(tmp_path / "out"), HF_HUB_OFFLINE="1", HF_ENDPOINT=NOWHERE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.usefixtures("alone")
def test_what_is_shipped_or_here_needs_nothing(small_checkpoint, capsys):
    names = ["gpt2-pocket", "spam-pocket", "persona", str(small_checkpoint)]
    assert experiments.main(["--download", names[0], "--download", *names[1:]]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: here already, nothing needs to be fetched" for name in names]


@pytest.mark.usefixtures("alone")
def test_a_name_that_is_neither_lists_the_choices_before_anything_is_fetched(capsys):
    with pytest.raises(UserError, match=r"'gpt5' is neither .*; choose gpt2-small, .*owner/name.*spam"):
        experiments.main(["--download", "gpt2-pocket", "gpt5"])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["gpt2-small", "gpt2-small (124M)", "spam", "rte", "acl_fs"])
def test_offline_says_what_is_missing(name):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: run once with a network"):
        experiments.main(["--download", name])


@pytest.mark.parametrize("flags", [["--model", "gpt2-pocket"], ["--data_dir", "x"], ["--generate", "x"]])
def test_it_stands_alone(flags):
    with pytest.raises(UserError, match="doesn't go with --download"):
        experiments.main(["--download", "spam-pocket", *flags])


def test_every_published_task_names_its_folder(tmp_path):
    """The one that its files are looked for in."""
    for task in TASKS.values():
        assert (task.folder is None) == (task.shipped is None)
        if task.folder:
            with pytest.raises(UserError, match=f"has no {task.folder}{os.sep}"):
                task.read(Path(tmp_path))


def test_every_published_model_is_a_choice():
    from pipeline.download import how_to_fetch

    for name in (*hub.REPOSITORIES, "owner/name", "owner/name@refs/pr/1"):
        assert how_to_fetch(name).args == (name,)
