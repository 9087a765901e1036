"""Our GPT-2 against transformers' GPT-2 with the same weights, and against hand computation where they have no equal."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import from_pretrained, weights
from model.gpt2 import GPT2, GPT2_SIZES, GPT2Config, init_gpt2
from model.heads import ClassifierHead, LanguageModelHead
from tests.helpers.parity import LAYERS, TOLERANCE, VOCAB, distance, gradients_by_their_names, padding_mask, reference
from utils.errors import UserError

TINY = GPT2Config(vocab_size=60, context_length=20, dim=32, n_heads=4, n_layers=3)
SQUARE_WEIGHTS = ["attn.q", "attn.k", "attn.v", "attn.out"]


@pytest.fixture
def ids():
    return torch.randint(VOCAB, (3, 20))


def run_theirs(theirs, ids, mask=None, **arguments):
    # Their position ids would follow a padding mask in some versions; ours are always 0, 1, 2, ...
    return theirs(ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None], **arguments)


# Same function


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_blocks_hidden_states_and_logits_equal_theirs(pair, ids, side):
    theirs, ours = pair
    mask = None if side is None else padding_mask(side)
    real = torch.ones_like(ids).bool() if side is None else mask.bool()
    block_outputs = []
    # Hooks because their `hidden_states` hold the last block's output only after the final norm.
    hooks = [
        block.register_forward_hook(lambda *call: block_outputs.append(call[2] if torch.is_tensor(call[2]) else call[2][0]))
        for block in theirs.transformer.h
    ]
    with torch.no_grad():
        expected = run_theirs(theirs, ids, mask, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        assert distance(ours.embed(ids), expected.hidden_states[0]) <= TOLERANCE
        for i, output in enumerate(block_outputs):
            entering = expected.hidden_states[i]
            assert distance(ours.run_blocks(entering, mask, i, i + 1)[real], output[real]) <= TOLERANCE
        assert len(block_outputs) == LAYERS
        assert distance(ours.encode(ids, mask)[real], expected.hidden_states[-1][real]) <= TOLERANCE
        assert distance(ours(ids, mask)[real], expected.logits[real]) <= TOLERANCE


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_loss_and_every_gradient_equal_theirs(pair, ids, side):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    mask = None if side is None else padding_mask(side)
    labels = ids if side is None else ids.masked_fill(mask == 0, -100)
    if side == "left":
        # The last padding token would be asked for the first real one. It attends to nothing, so there is no right answer.
        labels = labels.masked_fill(mask.cumsum(1) == 1, -100)
    expected = run_theirs(theirs, ids, mask, labels=labels).loss
    expected.backward()
    loss = lm_loss(ours(ids, mask), labels)
    loss.backward()
    assert distance(loss, expected) <= TOLERANCE

    translated = gradients_by_their_names(ours)
    expected_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert translated.keys() == expected_gradients.keys()
    too_far = {
        name: d for name in translated if not (d := distance(translated[name], expected_gradients[name])) <= TOLERANCE
    }
    assert not too_far


def lm_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def test_twenty_training_steps_give_their_losses(pair):
    theirs, ours = (copy.deepcopy(model).train() for model in pair)
    batches = torch.randint(VOCAB // 10, (20, 4, 16))  # few tokens, so that the loss falls

    def losses(model, loss_of):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        for batch in batches:
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    expected = list(losses(theirs, lambda batch: theirs(batch, labels=batch).loss))
    measured = list(losses(ours, lambda batch: lm_loss(ours(batch), batch)))
    assert expected[-1] < 0.7 * expected[0]  # it did train
    assert measured == pytest.approx(expected, abs=1e-4, rel=0)


@pytest.mark.parametrize("site", SQUARE_WEIGHTS)
def test_a_wrong_transpose_fails_the_tolerance(pair, ids, site):
    theirs, ours = pair[0], copy.deepcopy(pair[1])
    weight = ours.get_submodule(f"blocks.1.{site}").weight
    with torch.no_grad():
        weight.copy_(weight.T.clone())
        assert distance(ours(ids), theirs(ids).logits) > 100 * TOLERANCE


def test_sequence_classification_checkpoint(tmp_path, ids):
    theirs = reference("GPT2ForSequenceClassification", num_labels=5, pad_token_id=0)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, head="classifier", num_labels=5).eval()
    assert torch.equal(ours.head.classifier.weight, theirs.score.weight)
    assert not ours.head.classifier.bias.any()  # theirs has none
    mask = padding_mask("right")
    ids = (1 + ids % (VOCAB - 1)) * mask  # theirs finds the last real token by its difference from the padding id 0
    with torch.no_grad():
        assert distance(ours(ids, mask), theirs(ids, attention_mask=mask).logits) <= TOLERANCE


# What the model attends to


@pytest.fixture
def tiny():
    return init_gpt2(GPT2(TINY)).eval()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_later_token_reaches_earlier_positions_only_without_causal_mask(causal, masked):
    model = init_gpt2(GPT2(replace(TINY, causal=causal))).eval()
    before = torch.randint(30, (2, 10))
    after = before.clone()
    after[:, 7] = 59
    mask = torch.ones_like(before) if masked else None
    same = (model.encode(before, mask) == model.encode(after, mask)).all(-1)
    assert same[:, :7].all() == causal
    assert not same[:, 7:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_content_cannot_reach_real_positions(causal, side):
    model = init_gpt2(GPT2(replace(TINY, causal=causal))).eval()
    mask = padding_mask(side)
    one, other = (torch.randint(60, (3, 20)) for _ in range(2))
    other = torch.where(mask.bool(), one, other)
    assert torch.equal(model.encode(one, mask)[mask.bool()], model.encode(other, mask)[mask.bool()])
    assert not torch.equal(model.encode(one)[mask.bool()], model.encode(other)[mask.bool()]) or (causal and side == "right")
    # Rows that may attend to nothing (causal, padding on the left) must not poison sums and gradients with NaN.
    assert model.encode(one, mask).isfinite().all()


def test_run_blocks_is_a_seam(tiny):
    ids, mask = torch.randint(60, (3, 10)), padding_mask("right")[:, :10]
    whole = tiny.encode(ids, mask)
    for i in range(len(tiny.blocks) + 1):
        hidden = tiny.run_blocks(tiny.run_blocks(tiny.embed(ids), mask, stop=i), mask, start=i)
        assert torch.equal(tiny.final_norm(hidden), whole)
    assert not torch.equal(tiny.final_norm(tiny.run_blocks(tiny.embed(ids), mask, 1)), whole)


def test_an_input_beyond_the_context_names_both_numbers(tiny):
    tiny.encode(torch.zeros(1, 20, dtype=torch.long))
    with pytest.raises(UserError, match=r"\b21\b.*\b20\b"):
        tiny.encode(torch.zeros(1, 21, dtype=torch.long))


def test_a_model_without_head_says_so(tiny):
    with pytest.raises(UserError, match="no head"):
        tiny(torch.zeros(1, 2, dtype=torch.long))


# Heads


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("position", ["first", "last", "flexible", "average"])
def test_classifier_reads_the_position_it_names(tiny, position, side):
    average = position == "average"
    tiny.head = ClassifierHead(TINY.dim, 3, "last" if average else position, average)
    ids, real_counts = torch.randint(60, (3, 20)), [20, 13, 6]
    mask = None if side is None else padding_mask(side)
    hidden = tiny.encode(ids, mask)
    expected = []
    for row, count in enumerate(real_counts):
        start, end = (20 - count, 20) if side == "left" else (0, count)  # the real tokens of this row
        if position == "first":
            expected.append(hidden[row, 0])
        elif average:
            expected.append(hidden[row, start:end].mean(0) if side else hidden[row].mean(0))
        elif position == "last" and side is None:
            expected.append(hidden[row, -1])  # nothing says which tokens are padding, as in the published spam rows
        else:
            expected.append(hidden[row, end - 1])
    logits = torch.stack(expected) @ tiny.head.classifier.weight.T + tiny.head.classifier.bias
    torch.testing.assert_close(tiny(ids, mask, torch.tensor(real_counts)), logits, rtol=1e-5, atol=1e-6)


def test_flexible_reads_the_mask_where_no_lengths_are_given(tiny):
    tiny.head = ClassifierHead(TINY.dim, 3, "flexible")
    ids, mask = torch.randint(60, (3, 20)), padding_mask("right")
    assert torch.equal(tiny(ids, mask), tiny(ids, mask, torch.tensor([20, 13, 6])))
    assert not torch.equal(tiny(ids, mask)[1:], tiny.head.classifier(tiny.encode(ids, mask)[1:, -1]))


# Dropout and initialisation


def test_dropout_acts_only_in_training():
    model = init_gpt2(GPT2(replace(TINY, dropout=0.5)))
    without = GPT2(TINY)
    without.load_state_dict(model.state_dict())
    ids = torch.randint(60, (2, 10))
    hidden = without.embed(ids)
    # Blocks in which only the dropout before one of the two residual additions can show.
    after_attention, after_mlp = (copy.deepcopy(model.blocks[0]) for _ in range(2))
    for block, silent in ((after_attention, after_attention.mlp.down), (after_mlp, after_mlp.attn.out)):
        block.attn.dropout = 0.0
        nn.init.zeros_(silent.weight)
    parts = nn.ModuleList([model, after_attention, after_mlp])

    def outputs():
        attention = model.blocks[0].attn(hidden)
        return [model.embed(ids), attention, after_attention(hidden), after_mlp(hidden)]

    parts.train()
    assert [torch.equal(*both) for both in zip(outputs(), outputs(), strict=True)] == [False] * 4
    parts.eval()
    assert [torch.equal(*both) for both in zip(outputs(), outputs(), strict=True)] == [True] * 4
    assert torch.equal(model.encode(ids), without.train().encode(ids))


def test_init_gpt2_statistics():
    model = GPT2(GPT2Config(vocab_size=300, context_length=200, dim=64, n_heads=4, n_layers=8))
    for name, parameter in init_gpt2(model).named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 4 if name.endswith(("attn.out.weight", "mlp.down.weight")) else 0.02  # 4 = sqrt(2 x 8 layers)
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < expected / 10, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm.weight" in name))), name


def test_random_weights_are_drawn_in_the_published_order(tmp_path):
    weights.save_pretrained(GPT2(TINY), tmp_path)
    ours = from_pretrained(tmp_path, head="classifier", random_weights=True, seed=123)
    torch.manual_seed(123)
    dim = TINY.dim
    drawn = [nn.Embedding(TINY.vocab_size, dim), nn.Embedding(TINY.context_length, dim)]
    for _ in range(TINY.n_layers):
        drawn += [nn.Linear(dim, dim) for _ in range(4)]
        drawn += [nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)]
    torch.manual_seed(123)  # the published script sets the seed again before it adds its head
    drawn.append(nn.Linear(dim, 2))
    expected = [parameter for layer in drawn for parameter in layer.parameters()]
    drawn_by_us = [parameter for name, parameter in ours.named_parameters() if "norm" not in name]
    assert len(expected) == len(drawn_by_us)
    assert all(torch.equal(a, b) for a, b in zip(drawn_by_us, expected, strict=True))


@pytest.mark.parametrize(
    ("size", "count"),
    [("gpt2-small", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameter_counts_of_the_published_sizes(size, count):
    with torch.device("meta"):
        model = GPT2(GPT2_SIZES[size])
    model.head = LanguageModelHead(model.token_embedding)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
