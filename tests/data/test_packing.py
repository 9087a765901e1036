"""Several texts in a row: the same loss and gradients as each by itself."""

import pytest
import torch

from data.batching import IGNORED, Batches, Example, collate
from data.packing import pack
from model import fast_path
from model.bert import Bert, BertConfig, Roberta, RobertaConfig
from model.gpt2 import GPT2, GPT2Config
from model.heads import LanguageModelHead, MaskedLanguageModelHead
from tests.helpers.parity import TOLERANCE, distance
from training.activation_cache import cached
from utils.errors import UserError

PAD = 59
CPU = torch.device("cpu")
SIZES = {"vocab_size": 60, "context_length": 32, "dim": 32, "n_heads": 4, "n_layers": 3, "dropout": 0.0}


def make(kind: str):
    if kind == "gpt2":
        model = GPT2(GPT2Config(**SIZES))
        model.head = LanguageModelHead(model.token_embedding)
    else:
        of, config = (Bert, BertConfig) if kind == "bert" else (Roberta, RobertaConfig)
        model = of(config(**SIZES, mlp_dim=48))
        model.head = MaskedLanguageModelHead(model.token_embedding, 1e-12)
    return model.eval()


def texts(*lengths: int) -> list[Example]:
    """Random ones, whose first half has no targets."""
    made = []
    for length in lengths:
        ids = torch.randint(2, PAD, (length + 1,)).tolist()
        made.append(Example(ids[:-1], [IGNORED] * (length // 2) + ids[1 + length // 2 :]))
    return made


def loss_and_gradients(model, examples: list[Example], batch_size: int, pad_to: int | None = None):
    model.zero_grad()
    total = 0.0
    for batch in Batches(examples, batch_size, PAD, pad_to).epoch():
        loss, *_ = fast_path.loss(model, batch.to(CPU), IGNORED)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("pad_to", [None, 32])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta"])
def test_packed_equals_unpacked(kind: str, pad_to: int | None):
    model, alone = make(kind), texts(5, 9, 1, 12, 7, 20, 3, 2)
    rows = pack(alone, 24)
    assert len(rows) == 3 and max(len(one.text_lengths) for one in rows) > 2 and len({len(one.ids) for one in rows}) > 1
    expected, gradients = loss_and_gradients(model, alone, 1)
    found, packed_gradients = loss_and_gradients(model, rows, len(rows), pad_to)
    assert found == pytest.approx(expected, rel=1e-6)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        if name.endswith("attn.k.bias"):  # shifts all of a query's scores alike: no gradient, only rounding
            assert max(gradient.abs().max(), packed_gradients[name].abs().max()) <= TOLERANCE * largest
        else:
            assert distance(packed_gradients[name], gradient) <= TOLERANCE, name


@pytest.mark.parametrize("without", ["documents", "positions"])
def test_neither_documents_nor_positions_can_be_missing(without: str):
    """Else the test above would show nothing."""
    model, rows = make("gpt2"), pack(texts(5, 9, 7), 32)
    batch = collate(rows, PAD, None)
    right = fast_path.loss(model, batch.to(CPU), IGNORED)[0].item()
    changed = batch.__class__(**{**vars(batch), without: None})
    assert abs(fast_path.loss(model, changed.to(CPU), IGNORED)[0].item() - right) > 1e-3 * right


def test_each_position_sees_its_own_text_up_to_itself():
    """By the gradients of one position's hidden state on what was embedded."""
    model = make("gpt2")
    batch = collate(pack(texts(4, 3, 2), 9), PAD, 11)
    embedded = model.embed(batch.input_ids, positions=batch.positions).detach().requires_grad_()
    hidden = model.run_blocks(embedded, batch.visible())
    sees = torch.stack(
        [torch.autograd.grad(hidden[0, i, 0], embedded, retain_graph=True)[0][0].norm(dim=-1) for i in range(9)]
    )
    expected = torch.zeros(9, 11)
    for start, length in ((0, 4), (4, 3), (7, 2)):
        expected[start : start + length, start : start + length] = torch.ones(length, length).tril()
    assert torch.equal((sees > 0).float(), expected)


def test_a_batch_of_packed_rows():
    one, two = Example([1, 2], [2, 3]), Example([4, 5, 6], [IGNORED, 6, 7])
    rows = pack([one, two, Example([8], [9])], 5)
    assert [list(row.text_lengths) for row in rows] == [[3, 2], [1]]
    batch = collate(rows, PAD, None)
    assert batch.input_ids.tolist() == [[4, 5, 6, 1, 2], [8, PAD, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, 2, 3], [9] + [IGNORED] * 4]
    assert batch.documents.tolist() == [[1, 1, 1, 2, 2], [1, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch.lengths.tolist() == [5, 1] and batch.attention_mask is None
    visible = batch.visible()
    assert visible.shape == (2, 5, 5) and visible[0, 3].tolist() == [False, False, False, True, True]
    assert not visible[1, 0, 1:].any()
    assert batch.to(torch.device("meta")).documents.device.type == "meta"


def test_a_row_of_one_text_needs_nothing():
    batch = collate(texts(4, 3), PAD, None)
    assert batch.documents is None and batch.positions is None
    assert batch.visible() is batch.attention_mask


def test_hidden_states_of_frozen_blocks_are_those_of_packed_rows():
    model, rows = make("gpt2"), pack(texts(5, 9, 7, 3), 16)
    batches = Batches(rows, 2, PAD)
    model.requires_grad_(False).blocks[2].requires_grad_(True)
    kept = cached(model, {"train": batches, "train_in_order": batches}, "off")[0]["train"]
    expected = [fast_path.loss(model, batch.to(CPU), IGNORED)[0].item() for batch in batches.epoch()]
    found = [fast_path.loss(model, batch.to(CPU), IGNORED)[0].item() for batch in kept.epoch()]
    assert next(kept.epoch()).cached.start == 2 and found == pytest.approx(expected, rel=1e-6)


def first_fit(sizes: list[int], length: int) -> list[list[int]]:
    """As the textbook has it."""
    rows = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for row in rows:
            if sum(sizes[j] for j in row) + sizes[i] <= length:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


@pytest.mark.parametrize("length", [30, 64, 1000])
def test_rows_are_filled_by_first_fit(length: int):
    sizes = torch.randint(1, 31, (200,)).tolist()
    examples = [Example([i] * size, [i] * size) for i, size in enumerate(sizes)]
    rows = pack(examples, length)
    assert rows == pack(examples, length)
    found = [[list(row.ids)[sum(row.text_lengths[:i])] for i in range(len(row.text_lengths))] for row in rows]
    assert found == first_fit(sizes, length)
    assert all(list(row.label) == list(row.ids) and len(row.ids) == sum(row.text_lengths) <= length for row in rows)
    assert sum(sizes) / (len(rows) * length) > (0.9 if length < 1000 else 0.7)


def test_nothing_and_too_much_to_pack():
    assert pack([], 8) == []
    with pytest.raises(UserError, match="an example of 9 tokens doesn't fit into a row of 8"):
        pack(texts(3, 9), 8)
