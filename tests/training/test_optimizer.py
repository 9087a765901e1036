"""The optimizer, beside the library's, and that a run imports nothing of torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from peft import DoRA, attach
from tests.helpers.loop import make_model, settings
from tests.helpers.paths import ROOT
from training.optimizer import AdamW, make_optimizer


def parameters():
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 5), (7,), (), (3, 2))]


def steps(optimizer, members, rates):
    """Take steps with drawn gradients. The last parameter has none in every second step, the third never has one."""
    generator = torch.Generator().manual_seed(4)
    for number, rate in enumerate(rates):
        optimizer.zero_grad()
        for place, parameter in enumerate(members):
            if place == 2 or (place == 3 and number % 2):
                continue
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def test_it_is_the_library_s_to_the_last_bit():
    results = []
    for make in (AdamW, lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True)):
        members = parameters()
        groups = [{"params": members[:1], "weight_decay": 0.1}, {"params": members[1:], "weight_decay": 0.0, "factor": 2}]
        optimizer = make(groups, lr=1e-2)
        steps(optimizer, members, [1e-2, 3e-2, 1e-3, 0.0, 5e-2])
        moments = [value for one in members if one in optimizer.state for value in optimizer.state[one].values()]
        results.append((members, moments, [group["lr"] for group in optimizer.param_groups]))
    (ours, own_moments, own_rates), (theirs, their_moments, their_rates) = results
    for one, other in zip([*ours, *own_moments], [*theirs, *their_moments], strict=True):
        assert torch.equal(one, other)
    assert own_rates == their_rates
    assert not any(torch.equal(one, start) for one, start in zip(ours, parameters(), strict=True) if one.ndim)


@pytest.mark.not_quick  # a process
@pytest.mark.parametrize("flags", [[], ["--trainable_layers", "lora", "--base_precision", "int8"]])
def test_a_run_imports_no_compiler(flags, tmp_path):
    """It takes two seconds, of a run that compiles nothing."""
    flags = ["--max_steps", "2", "--eval_train", "no", "--device", "cpu", "--output_dir", str(tmp_path), *flags]
    heavy = ["torch._dynamo", "sympy"]
    code = f"import sys, experiments; experiments.main({flags!r}); sys.exit(bool(sys.modules.keys() & {heavy}))"
    base = ["--model", "gpt2-pocket", "--dataset", "spam-pocket"]
    code = code.replace("main([", f"main([*{base!r}, ")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_decay_norms_all_but_biases_and_norms_decay():
    """As in the library's `Trainer`: a magnitude is a vector, and neither of the two."""
    model = attach(make_model(), DoRA()).requires_grad_(True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, settings(decay_norms="no", weight_decay=0.1)).param_groups
    kept = {names[one] for group in groups if not group["weight_decay"] for one in group["params"]}
    assert kept == {name for name in names.values() if name.endswith(".bias") or "norm." in name}
    assert any(name.endswith("magnitude") for name in names.values()) and len(groups) == 2
