"""Methods by their names, and a method of one's own."""

import re
from dataclasses import dataclass

import pytest
from torch import nn

import peft
from config import Run, resolve
from data.spam import RECIPE
from peft import METHODS, attach, method, method_of, registry
from tests.helpers.methods import FINAL_NORM, HEAD, tiny, trained_names
from utils.errors import UserError


@pytest.mark.parametrize("name", ["loar", None])
def test_an_unknown_method_lists_the_choices(name: str | None):
    with pytest.raises(UserError) as caught:
        method_of(Run(trainable_layers=name))
    assert repr(name) in str(caught.value)
    names = ("last_layer", "last_block", "last_two_blocks", "all", "freeze", "bitfit", "adapter", "bypass", "lora")
    for choice in (*names, "lora_alternative"):
        assert choice in str(caught.value)


@pytest.mark.parametrize("name", ["lora+", "+lora", "lora+loar", "lora bypass", "lora + bypass"])
def test_a_misspelt_join_names_the_part(name: str):
    wrong = next(part for part in name.split("+") if part not in METHODS)
    with pytest.raises(UserError, match=re.escape(f"unknown --trainable_layers {wrong!r}: choose ") + ".*joined with +"):
        method_of(resolve(Run(trainable_layers=name), RECIPE))


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))  # what is registered here is gone after the test

    @method("mine", "mine_too")
    @dataclass(frozen=True)
    class Norms:
        name: str
        train_head: bool

        @classmethod
        def from_run(cls, name: str, run: Run) -> "Norms":
            return cls(name, run.train_head == "yes")

        def attach(self, model: nn.Module) -> None:
            model.final_norm.requires_grad_(True)
            peft.train_head(model, self.train_head)

    found = method_of(Run(trainable_layers="mine_too", train_head="no"))
    assert found == Norms("mine_too", False)
    assert trained_names(attach(tiny(), found)) == FINAL_NORM
    assert trained_names(attach(tiny(), method_of(Run(trainable_layers="mine", train_head="yes")))) == FINAL_NORM | HEAD
    with pytest.raises(UserError, match="mine, mine_too"):
        method_of(Run(trainable_layers="yours"))


def test_a_name_that_is_taken_is_refused_and_keeps_its_method():
    before = METHODS["lora"]
    with pytest.raises(UserError, match=r"the method 'lora' of .*Other is peft\.lora\.LoRA already; choose another name"):

        @method("another", "lora")
        class Other: ...

    assert METHODS["lora"] is before and "another" not in METHODS


def test_a_module_that_is_read_again_registers_its_methods_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "METHODS", {})
    one, two = (method("mine")(type("Mine", (), {"__module__": "peft.mine"})) for _ in range(2))
    assert [*registry.METHODS.values()] == [two] and one is not two
