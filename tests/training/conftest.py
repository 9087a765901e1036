"""What tests of the loop look at."""

import pytest

from training.optimizer import AdamW


@pytest.fixture
def seen_by_optimizer(monkeypatch):
    """What each optimizer step is given: its learning rate and its gradients."""
    steps, step = [], AdamW.step

    def look(optimizer):
        group = optimizer.param_groups[0]
        steps.append({"rate": group["lr"], "gradients": [p.grad.clone() for p in group["params"]]})
        step(optimizer)

    monkeypatch.setattr(AdamW, "step", look)
    return steps
