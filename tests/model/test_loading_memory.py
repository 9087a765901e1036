"""Loading takes the memory of the model and little more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import weights
from model.gpt2 import GPT2, GPT2Config
from tests.helpers.paths import ROOT
from tests.helpers.small import shard

pytestmark = [
    pytest.mark.not_quick,  # two processes
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc"),
]

PEAK = """
import os, sys
from model import from_pretrained
def peak():  # VmHWM, not ru_maxrss: that one starts at the peak of the process which started this one
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
warm, *directories = sys.argv[1:]
from_pretrained(warm, base_precision="int8")  # what PyTorch itself allocates once
for directory, precision in [(one, "fp32") for one in directories] + [(directories[0], "int8")]:
    if os.fork() == 0:  # in a process of its own, whose peak starts at its present size
        before = peak()
        model = from_pretrained(directory, base_precision=precision)
        print(peak() - before, sum(one.nbytes for one in [*model.parameters(), *model.buffers()]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_loading_needs_the_model_and_little_more(checkpoint, tmp_path):
    with torch.device("meta"):
        big = GPT2(GPT2Config(vocab_size=8000, context_length=64, dim=768, n_heads=12, n_layers=6))
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    weights.save_pretrained(big.to_empty(device="cpu"), single)
    sharded.mkdir()
    for file in single.iterdir():
        os.link(file, sharded / file.name)
    shard(sharded)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, checkpoint, single, sharded],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # no thread that a fork would lose
        capture_output=True,
        text=True,
    )
    for written in (single, sharded):
        shutil.rmtree(written)  # pytest would keep their 400 MB for three sessions
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    whole, again, in_8_bits = (tuple(map(int, line.split())) for line in lines)
    for growth, size in (whole, again):
        assert size > 190e6
        assert size * 0.9 < growth < size * 1.35 + 60e6  # below: the measurement itself would be wrong
    growth, size = in_8_bits
    # Half of what the whole weights would take by themselves: a few tensors are at work at once, in float32.
    assert size < whole[1] * 0.3 and size * 0.9 < growth < size + 100e6 < whole[1]
