"""A run that is killed, whenever it is, ends as one that nobody disturbed once it has been resumed. See killing.py."""

import json
import os
import subprocess
import sys
from random import SystemRandom

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.not_quick  # starts processes and kills them

FLAGS = "--learning_rate 1e-3 --amp off --device cpu --dropout 0.1 --num_epochs 1 --max_steps 5 --logging_steps 3 "
FLAGS += "--eval_steps 2 --save_steps 2 --save_total_limit 2"
PLANS = {"one stage": (), "layer by layer": ("--stages", "layer_by_layer")}


def kill(how: str, kills: int, seed: int, plan: str, checkpoint, data, folder) -> dict:
    words = [sys.executable, "-m", "tests.helpers.killing", how, kills, seed, folder, *FLAGS.split(), *PLANS[plan]]
    words += ["--checkpoint", checkpoint, "--data_dir", data]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return json.loads(done.stdout)


def check(report: dict, kills: int) -> None:
    assert report["signals"] == kills and set(report["ended"]) <= {"-9", "0", "130"}, report
    assert report["runs"] and not any(report["different"]), report


@pytest.mark.parametrize("plan", PLANS)
def test_a_kill_at_a_few_things_done_to_a_file(plan, small_checkpoint, small_data, tmp_path):
    check(kill("writes", 4, 1, plan, small_checkpoint, small_data, tmp_path), 4)


@pytest.mark.parametrize("plan", PLANS)
def test_thirty_kills_at_random_moments(plan, small_checkpoint, small_data, tmp_path):
    seed = SystemRandom().randrange(10**6)
    check(kill("moments", 30, seed, plan, small_checkpoint, small_data, tmp_path), 30)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_a_kill_at_each_thing_done_to_a_file(plan, small_checkpoint, small_data, tmp_path):
    report = kill("writes", 0, 1, plan, small_checkpoint, small_data, tmp_path)
    check(report, report["signals"])
    assert report["signals"] > 30 and report["ended"]["-9"] == report["signals"]
