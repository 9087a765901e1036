"""Several adapters on one base, and merging that can be taken back."""

import pytest
import torch
from safetensors.torch import save_file

from model.gpt2 import GPT2
from model.heads import LanguageModelHead
from peft import Adapters, attach, export, merge, share
from peft.huggingface.read import FromPeft
from tests.helpers.methods import ALL, CONFIG, every_method, logits, snapshot, tiny, train, trained_names
from utils.errors import UserError


@every_method
def test_models_that_share_tensors_do_not_see_each_other(chosen):
    model = train(attach(tiny(), chosen))
    expected, tensors = logits(model), snapshot(model)
    second = share(model)
    assert torch.equal(logits(second), expected) and trained_names(second) == trained_names(model)
    merge(second)
    torch.testing.assert_close(logits(second), expected, atol=1e-5, rtol=0)
    assert torch.equal(logits(model), expected)  # to the last bit: dropping the merged one is an unmerge
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_adapters_on_one_base():
    base, trained = tiny(), {}
    before, plain = snapshot(base), logits(base)
    adapters = Adapters(base)
    names = ["lora", "dora", "ia3", "prefix", "prompt", "bypass", "last_block", "all", "lora from the principal parts"]
    for name in names:
        model = train(attach(tiny(), ALL[name]))
        trained[name] = logits(model)
        adapters.add(name, ALL[name], export(model))
    for name in names + names[::-1]:
        assert torch.equal(logits(adapters[name]), trained[name])
        assert torch.equal(logits(base), plain)
    train(adapters["lora"])  # its head is its own
    train(adapters.add("new", ALL["last_layer"]))
    assert not torch.equal(logits(adapters["lora"]), trained["lora"])
    for name in names[1:]:
        assert torch.equal(logits(adapters[name]), trained[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    own = {parameter.data_ptr() for parameter in base.parameters()}
    added = [one for one in adapters["prefix"].parameters() if one.data_ptr() not in own]
    assert {id(one) for one in added} == {id(one) for one in adapters["prefix"].parameters() if one.requires_grad}
    with pytest.raises(UserError, match="no adapter 'loar': choose lora, dora"):
        adapters["loar"]


def test_an_adapter_of_the_library_leaves_the_base_as_it_is(tmp_path):
    path, draw = "base_model.model.transformer.h.0.attn.c_attn", torch.Generator().manual_seed(3)
    shapes = {f"{path}.lora_A.weight": (3, 32), f"{path}.lora_B.weight": (96, 3), "base_model.model.score.weight": (2, 32)}
    save_file(
        {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["h.0.attn.c_attn"]}'
    )
    base = tiny()
    before, plain = snapshot(base), logits(base)
    adapted = Adapters(base).add("theirs", FromPeft(str(tmp_path)))
    assert not torch.allclose(logits(adapted), plain, atol=1e-2)
    assert torch.equal(logits(base), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_tied_weight_stays_tied_in_a_model_that_shares():
    model = GPT2(CONFIG)
    model.head = LanguageModelHead(model.token_embedding)
    second = share(model)
    assert second.head.weight is second.token_embedding.weight is not model.token_embedding.weight
    assert second.head.weight.data_ptr() == model.token_embedding.weight.data_ptr()
