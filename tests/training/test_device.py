"""Which device and precision a run computes in."""

import pytest
import torch

from tests.helpers.loop import make_batches, make_examples, make_model, settings
from train import fit
from training.device import pick_amp, pick_device
from training.metrics_log import Metrics
from utils.errors import UserError


@pytest.mark.parametrize("avx512, amx", [(False, False), (True, False), (False, True)])
def test_amp_on_a_cpu(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpu = torch.device("cpu")
    assert pick_amp("auto", cpu) == ("bf16" if avx512 or amx else "off")
    assert (pick_amp("off", cpu), pick_amp("bf16", cpu)) == ("off", "bf16")
    with pytest.raises(UserError, match="choose auto, off or bf16"):
        pick_amp("fp16", cpu)


def test_bf16_trains_float32_tensors():
    ends = []
    for amp in ("off", "bf16"):
        model = make_model()
        metrics = Metrics()
        fit(model, make_batches(make_examples(16), 4), settings(amp=amp), metrics)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        ends.append([record["loss"] for record in metrics.records])
    assert ends[0] != ends[1]  # it did compute in bf16
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_an_absent_device_lists_the_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for absent in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"--device {absent} isn't available here; choose auto, cpu$"):
            pick_device(absent)
