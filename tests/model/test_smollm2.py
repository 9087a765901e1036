"""SmolLM2-135M-Instruct, the real one: numbers that the reference library computed once on the same weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from model import fast_path, from_pretrained
from model.base_precision import weights_of
from model.generation import generate, left_padded
from model.llama import Llama
from model.nf4 import NF4Weight
from model.registry import entries_of
from model.tokenizers.decoder import DecoderTokenizer

pytestmark = pytest.mark.not_quick  # seconds to load


@pytest.fixture(scope="module")
def golden(shared) -> dict:
    return json.loads((shared / "golden/smollm2/golden_smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(smollm2) -> DecoderTokenizer:
    return DecoderTokenizer.from_directory(smollm2)


@pytest.fixture(scope="module")
def model(smollm2) -> Llama:
    return from_pretrained(smollm2).eval()


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each next token: [1, T, V] and [1, T] -> []."""
    return F.cross_entropy(logits[0, :-1], ids[0, 1:])


@torch.no_grad()
def test_prompts(model, tokenizer, golden):
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["parameters"]
    for prompt in golden["prompts"]:
        assert tokenizer.encode(prompt["text"]) == prompt["ids"]
        ids = torch.tensor([prompt["ids"]])
        logits = model(ids)
        assert loss_of(logits, ids).item() == pytest.approx(prompt["loss"], abs=2e-5)
        assert logits.norm().item() == pytest.approx(prompt["logits_norm"], rel=1e-5)
        found = logits[0, prompt["positions"]].topk(10)
        assert found.indices.tolist() == prompt["top10_ids"]
        torch.testing.assert_close(found.values, torch.tensor(prompt["top10_logits"]), atol=2e-4, rtol=0)


@torch.no_grad()
def test_prompts_with_a_base_in_four_bits(smollm2, golden):
    model = from_pretrained(smollm2, base_precision="nf4").eval()
    assert sum(one.numel() for one in weights_of(model).values() if isinstance(one, NF4Weight)) == golden["nf4"]["weights"]
    ids = [torch.tensor([prompt["ids"]]) for prompt in golden["prompts"]]
    losses = [loss_of(model(one), one).item() for one in ids]
    assert losses == pytest.approx(golden["nf4"]["losses"], abs=2e-4)
    assert losses == pytest.approx(golden["nf4"]["losses_bitsandbytes"], abs=2e-3)  # whose magnitudes round otherwise
    whole = [prompt["loss"] for prompt in golden["prompts"]]
    assert max(abs(one - other) for one, other in zip(losses, whole, strict=True)) > 0.02


@torch.no_grad()
def test_hidden_states_of_each_block(model, golden):
    for prompt in golden["prompts"]:
        hidden = model.embed(torch.tensor([prompt["ids"]]))
        norms = [hidden.norm().item()]
        for number in range(len(model.blocks)):
            hidden = model.run_blocks(hidden, None, number, number + 1)
            norms.append(hidden.norm().item())
        last = model.final_norm(hidden)
        norms[-1] = last.norm().item()  # the library gives the last ones behind the norm
        assert norms == pytest.approx(prompt["hidden_norms"], rel=1e-4)
        torch.testing.assert_close(last[0, -1, :8], torch.tensor(prompt["last_hidden_first8"]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_on_the_left(model, golden):
    prompts = [golden["prompts"][row]["ids"] for row in golden["left_padding"]["rows"]]
    ids, mask = left_padded(prompts, 2)
    logits = model(ids, mask)[:, -1]
    assert logits.argmax(dim=-1).tolist() == golden["left_padding"]["argmax"]
    alone = torch.cat([model(torch.tensor([one]))[:, -1] for one in prompts])
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=0)


def test_gradients(model, golden):
    prompt = torch.tensor([golden["prompts"][0]["ids"]])
    parameters = dict(model.named_parameters())
    names = {entry.hf_name: entry.names[0] for entry in entries_of(model) if entry.names and entry.names[0] in parameters}
    chosen = [parameters[names[hf_name]] for hf_name in golden["gradient_norms_prompt0"]]
    gradients = torch.autograd.grad(loss_of(model(prompt), prompt), chosen)
    found = [gradient.norm().item() for gradient in gradients]
    assert found == pytest.approx([*golden["gradient_norms_prompt0"].values()], rel=1e-4)


@pytest.mark.slow
def test_greedy_answers(model, tokenizer, golden):
    """Texts of several lengths in one batch, and each of them alone."""
    ids, mask = left_padded([chat["prompt_ids"] for chat in golden["chat"]], tokenizer.pad_id)
    most = max(len(chat["answer_ids"]) for chat in golden["chat"])
    together = generate(model, ids, mask, max_new_tokens=most, eos_id=tokenizer.end_ids)
    for chat, answer in zip(golden["chat"], together, strict=True):
        n = len(chat["answer_ids"])
        alone = generate(model, torch.tensor([chat["prompt_ids"]]), max_new_tokens=n, eos_id=tokenizer.end_ids)[0]
        expected = [token for token in chat["answer_ids"] if token not in tokenizer.end_ids]
        assert alone == expected == answer[: len(expected)]
        assert tokenizer.decode(chat["answer_ids"]) == chat["answer"]


@pytest.fixture(scope="module")
def wikitext(shared, tokenizer, golden) -> torch.Tensor:
    """Return the first 20,000 tokens of WikiText-2's test part."""
    text = Path(shared, "data/text_corpus/wikitext2_test.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)[:20000]
    assert ids[:16] == golden["wikitext2"]["first_ids"]
    return torch.tensor(ids)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("how", ["blocks", "strided"])
def test_perplexity(how, model, wikitext, golden):
    """Each window after the first scores only what the one before it hasn't seen."""
    expected, total, n_scored, seen = golden["wikitext2"][how], 0.0, 0, 0
    for start in range(0, len(wikitext), expected["stride"]):
        window = wikitext[start : start + expected["window"]]
        logits = fast_path.logits(model, model.embed(window[None]))[0, :-1]
        targets = window[1:]
        new = slice(max(0, seen - start - 1), None)
        total += F.cross_entropy(logits[new], targets[new], reduction="sum").item()
        n_scored, seen = n_scored + len(targets[new]), start + len(window)
        if seen == len(wikitext):
            break
    assert n_scored == expected["tokens_scored"]
    assert math.exp(total / n_scored) == pytest.approx(expected["perplexity"], abs=5e-4)
