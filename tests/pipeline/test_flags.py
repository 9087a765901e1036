"""Every flag changes what it says. One check per field of `Run`; a field without one fails the last test."""

from dataclasses import fields

import pytest

from config import Run
from tests.helpers.flags import data, dialogues, loop, machine, methods, model  # noqa: F401 (they register their checks)
from tests.helpers.flags.register import CHECKS
from training.checkpoints import Checkpointer


@pytest.fixture
def fixtures(alone, small_checkpoint, small_data, monkeypatch):
    saved, save = [], Checkpointer.save

    def spy(self, *parts, required):
        saved.append(parts[-1].step)
        save(self, *parts, required)

    monkeypatch.setattr(Checkpointer, "save", spy)
    found = {"alone": alone, "checkpoint": small_checkpoint, "data": small_data, "monkeypatch": monkeypatch}
    return found | {"save_state": saved}


@pytest.mark.parametrize("checks", dict.fromkeys(CHECKS.values()), ids=lambda function: function.__name__)
def test_flag(checks, experiment, fixtures):
    checks(experiment, fixtures)


def test_every_flag_is_checked():
    assert {one.name for one in fields(Run)} == CHECKS.keys()
