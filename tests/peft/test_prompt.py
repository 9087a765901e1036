"""Prompt tuning against the reference library with the same vectors as embeddings, and generation with it."""

import copy

import pytest
import torch
from torch.nn import functional as F

from config import Run, resolve
from model import kv_cache
from model.registry import ARCHITECTURES
from model.weights import to_hugging_face
from peft import Bypass, LoRA, PromptTuning, attach, export, merge, method_of, restore
from tests.helpers.architectures import DIFFERENT, small_config
from tests.helpers.generation import assert_cached_as_plain, texts
from tests.helpers.methods import tiny_gpt2, trained_names
from tests.helpers.parity import assert_same_on_real_tokens, distance, padding_mask
from training.activation_cache import n_frozen_blocks
from utils.errors import UserError

P = 5


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_logits_and_gradients_equal_theirs_with_embeddings_in_front(pair, side):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    attach(ours, PromptTuning(P))
    ids = torch.randint(500, (3, 20))
    mask = torch.ones_like(ids) if side is None else padding_mask(side)
    found = ours(ids, None if side is None else mask)
    # Theirs adds a position's embedding to whatever comes in, so that of position 0 is taken off the prompt first.
    prompt = ours.prompt.weight - theirs.transformer.wpe.weight[0]
    expected = theirs(
        inputs_embeds=torch.cat([prompt.expand(3, -1, -1), theirs.transformer.wte(ids)], dim=1),
        attention_mask=F.pad(mask, (P, 0), value=1),
        position_ids=F.pad(torch.arange(20), (P, 0))[None],
    ).logits[:, P:]
    assert assert_same_on_real_tokens(ours, found, expected, ids, mask) == 1
    real = mask.bool()
    assert distance(found[real], pair[1](ids, None if side is None else mask)[real]) > 0.01  # it does something


@torch.no_grad()
def test_each_of_several_texts_in_a_row_sees_the_prompt():
    model = attach(tiny_gpt2(head="lm"), PromptTuning(P))
    one, other = torch.randint(50, (1, 6)), torch.randint(50, (1, 4))
    documents = torch.tensor([[1] * 6 + [2] * 4])
    positions = torch.tensor([[*range(6), *range(4)]])
    mask = documents[:, :, None] == documents[:, None, :]
    found = model(torch.cat([one, other], dim=1), mask, positions=positions)
    torch.testing.assert_close(found, torch.cat([model(one), model(other)], dim=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("position", ["first", "last", "flexible", "mean"])
def test_a_classifier_reads_the_text_and_not_the_prompt(kind, position):
    torch.manual_seed(2)
    architecture = ARCHITECTURES[kind]
    config = small_config(kind, context_length=24)
    model = architecture.model(config).eval()
    how = ("last", True) if position == "mean" else (position, False)
    model.head = architecture.classifier_head(config, 2, *how).eval()
    attach(model, PromptTuning(P))
    ids, mask = torch.randint(2, 50, (3, 20)), padding_mask("right")
    states = model.encode(ids, mask)
    assert states.shape == (3, 20, 32)
    if position == "mean":
        read = torch.stack([row[:n].mean(0) for row, n in zip(states, (20, 13, 6), strict=True)])
    else:
        read = states[torch.arange(3), [0, 0, 0] if position == "first" else [19, 12, 5]]
    torch.testing.assert_close(model(ids, mask), model.head.classify(read), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_branches_read_the_text_and_not_the_prompt():
    model = attach(tiny_gpt2(), PromptTuning(P))
    Bypass("2", init="default").attach(model)
    ids = torch.randint(50, (3, 9))
    heard = []
    hook = model.blocks[1].register_forward_hook(lambda module, inputs, output: heard.append(output))
    found = model(ids)
    hook.remove()
    added = model.head.branches.h_2(heard[0][:, P + 8])  # block 1's output at the last token
    assert heard[0].shape == (3, P + 9, 32)
    torch.testing.assert_close(found, model.head.classifier(model.encode(ids)[:, -1] + added), atol=1e-5, rtol=1e-5)


def test_what_trains_and_where_it_starts():
    model = attach(tiny_gpt2(), method_of(resolve(Run(trainable_layers="prompt", prefix_length=7, train_head="no"), {})))
    assert trained_names(model) == {"prompt.weight"} and model.prompt.weight.shape == (7, 32)
    embedded = model.token_embedding.weight + model.position_embedding.weight[:7, None]  # [P, V, D]
    assert ((embedded - model.prompt.weight[:, None]).abs().amax(-1).amin(-1) < 1e-6).all()  # each is some token's
    assert n_frozen_blocks(model) == 0  # no block gives the same every time
    assert "prompt.weight" in trained_names(attach(tiny_gpt2(), PromptTuning())) > {"prompt.weight"}  # and the head


@torch.no_grad()
def test_export_restore_and_merge():
    ids = torch.randint(50, (3, 9))
    model = attach(tiny_gpt2(head="lm"), PromptTuning(P))
    model.prompt.weight.normal_()
    expected, tensors = model(ids), export(model)
    assert tensors.keys() == {"prompt.weight"}
    fresh = attach(tiny_gpt2(head="lm"), PromptTuning(P))  # with another prompt, since the model's was drawn anew
    assert distance(fresh(ids), expected) > 0.01
    assert torch.equal(restore(fresh, tensors)(ids), expected)
    assert torch.equal(merge(model)(ids), expected)  # there is no plain layer for it
    with pytest.raises(UserError, match=r"can't save prompt.weight in Hugging Face layout"):
        to_hugging_face(model)
    with pytest.raises(UserError, match="has a prompt already"):
        attach(model, PromptTuning(P))
    with pytest.raises(UserError, match=r"prompt.weight has shape \[5, 32\], expected \[6, 32\]"):
        restore(attach(tiny_gpt2(head="lm"), PromptTuning(6)), tensors)


def test_lengths_that_are_refused():
    with pytest.raises(UserError, match="--prefix_length is 0; it must be at least 1"):
        PromptTuning(0)
    with pytest.raises(UserError, match="--prefix_length is 25; a prompt can be at most as long as the context, 24"):
        attach(tiny_gpt2(), PromptTuning(25))


def test_generation_with_a_cache_equals_without_token_by_token(pair):
    model = attach(copy.deepcopy(pair[1]), PromptTuning(P))
    LoRA(rank=2).attach(model)
    assert_cached_as_plain(model, pair[1])


@torch.no_grad()
def test_a_cache_holds_the_prompt_once(pair):
    model = attach(copy.deepcopy(pair[1]), PromptTuning(P))
    ids, cache = torch.tensor(texts(12)), kv_cache.KVCache(model)
    for start, stop in ((0, 4), (4, 5), (5, 12)):  # several tokens after some, too
        found = kv_cache.next_logits(model, ids[:, start:stop], None, torch.arange(start, stop)[None], cache)
        assert len(cache) == P + stop
    torch.testing.assert_close(found, model(ids)[:, -1], atol=1e-5, rtol=1e-5)


def test_through_the_command_line(experiment):
    flags = ("--trainable_layers", "prompt", "--prefix_length", 3, "--train_head", "no")
    found = experiment(*flags, max_steps=4)
    assert {name: tuple(t.shape) for name, t in found.tensors.items()} == {"prompt.weight": (3, 32)}
    assert found.result["trainable_parameters"] == 3 * 32 and "\nfrozen " not in found.out
    unpadded = experiment(*flags, "--no_padding", max_steps=4)
    assert unpadded.logged("loss") != found.logged("loss")
