"""The loss of DPO equals a plain computation in float64, and that of the library trl; only answers count, each once."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import peft
from data.batching import IGNORED, Batches, Example, collate
from data.packing import join
from model import fast_path, from_pretrained, preference_loss
from model.registry import ARCHITECTURES
from tests.helpers.architectures import small_config
from tests.helpers.loop import settings
from tests.helpers.parity import TOLERANCE, gradients_by_their_names
from tests.helpers.paths import ROOT
from train import count_targets, evaluate, fit
from training import activation_cache
from training.metrics_log import Metrics
from training.references import with_references

CPU = torch.device("cpu")
BETA = 0.3
KINDS = ["gpt2", "llama", "mistral", "qwen2"]


def make(kind: str, seed: int = 1):
    torch.manual_seed(seed)
    config = small_config(kind)
    entry = ARCHITECTURES[kind]
    model = entry.model(config)
    model.head = entry.lm_head(model)
    for parameter in model.parameters():  # a drawn model is nearly sure of nothing
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_text(prompt: list[int], n: int) -> Example:
    """The prompt, and n drawn tokens behind it, which alone are targets."""
    ids = prompt + torch.randint(2, 49, (n,)).tolist()
    return Example(ids[:-1], [IGNORED] * (len(prompt) - 1) + ids[len(prompt) :])


def make_pairs(seed: int = 3) -> list[Example]:
    torch.manual_seed(seed)
    prompts = [torch.randint(2, 49, (n,)).tolist() for n in (4, 1, 6, 3)]
    return [
        join([make_text(prompt, n), make_text(prompt, m)])
        for prompt, n, m in zip(prompts, (3, 8, 1, 5), (5, 2, 4, 9), strict=True)
    ]


def plain_log_probability(model, ids: list[int], targets: list[int]) -> torch.Tensor:
    """Of one text, with nothing beside it and nothing padded."""
    scores = model(torch.tensor([ids]))[0]  # [T, V]
    return sum(scores[i].log_softmax(-1)[token] for i, token in enumerate(targets) if token != IGNORED)


def plain_loss(model, reference, pairs: list[Example]) -> tuple[torch.Tensor, list[float]]:
    """Equation 7, pair by pair, and each pair's log p(chosen) - log p(rejected)."""
    losses, gaps = [], []
    for pair in pairs:
        n = pair.text_lengths[0]
        chosen, rejected = (pair.ids[:n], pair.label[:n]), (pair.ids[n:], pair.label[n:])
        ours = [plain_log_probability(model, *text) for text in (chosen, rejected)]
        with torch.no_grad():
            theirs = [plain_log_probability(reference, *text) for text in (chosen, rejected)]
        reward_chosen, reward_rejected = (BETA * (one - other) for one, other in zip(ours, theirs, strict=True))
        losses.append(-torch.log(1 / (1 + torch.exp(-(reward_chosen - reward_rejected)))))
        gaps.append((ours[0] - ours[1]).item())
    return sum(losses), gaps


def batches_of(pairs: list[Example], batch_size: int = 4, pad_to: int | None = None) -> dict[str, Batches]:
    plain = Batches(pairs, batch_size, 0, pad_to)
    return {"train": plain, "train_in_order": plain}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size, pad_to, scores_at_once", [(4, None, 1 << 24), (3, 40, 200), (1, None, 50)])
def test_loss_and_gradients_are_those_of_a_plain_computation(kind, batch_size, pad_to, scores_at_once, monkeypatch):
    monkeypatch.setattr(preference_loss, "SCORES_AT_ONCE", scores_at_once)  # 200: four tokens at a time
    model, reference, pairs = make(kind, seed=1), make(kind, seed=2), make_pairs()
    exact = copy.deepcopy(model).double()
    expected, gaps = plain_loss(exact, copy.deepcopy(reference).double(), pairs)
    expected.backward()
    batches = with_references(reference, batches_of(pairs, batch_size, pad_to), "off", BETA)["train"]
    total, found = 0.0, []
    for batch in batches.epoch():
        loss, batch_gaps, _ = fast_path.loss(model, batch.to(CPU), IGNORED)
        loss.backward()
        total, found = total + loss.item(), found + batch_gaps.tolist()
    assert expected.item() > 1 and total == pytest.approx(expected.item(), rel=1e-5)
    assert found == pytest.approx(gaps, abs=1e-4)
    wanted = {name: one.grad for name, one in exact.named_parameters() if one.grad is not None}
    largest = max(one.abs().max() for one in wanted.values())
    for name, one in model.named_parameters():
        assert (one.grad - wanted[name]).abs().max() < TOLERANCE * largest, name


def test_the_formula_by_hand():
    found, references = torch.tensor([[-1.0, -3.0], [-5.0, -2.0]]), torch.tensor([[-2.0, -3.0], [-5.0, -4.0]])
    loss, gaps, reference_gaps = preference_loss.preference_loss(found, references, 0.5)
    # Rewards: 0.5 and 0 of the first pair, 0 and 1 of the second.
    assert loss.item() == pytest.approx((F.softplus(torch.tensor(-0.5)) + F.softplus(torch.tensor(1.0))).item())
    assert gaps.tolist() == [2, -3] and reference_gaps.tolist() == [1, -1]


def test_a_model_that_is_its_own_reference_has_no_margin():
    batches = with_references(make("gpt2"), batches_of(make_pairs()), "off", BETA)
    found = evaluate(make("gpt2"), batches["train_in_order"])
    assert found["loss"] == pytest.approx(0.693147, abs=1e-6) and found["targets"] == 4
    assert found["margin"] == 0 and found["accuracy"] == 0 and found["gap"] == found["gap_before"] != 0
    assert "perplexity" not in found and "confusion" not in found


def test_measures_are_means_over_pairs():
    model, reference, pairs = make("gpt2"), make("gpt2", seed=2), make_pairs()
    batches = with_references(reference, batches_of(pairs, batch_size=3), "off", BETA)["train_in_order"]
    found, (loss, gaps) = evaluate(model, batches), plain_loss(model, reference, pairs)
    _, before = plain_loss(reference, reference, pairs)
    margins = [one - other for one, other in zip(gaps, before, strict=True)]
    assert found["loss"] == pytest.approx(loss.item() / 4, rel=1e-5)
    assert found["accuracy"] == sum(one > 0 for one in margins) / 4 and 0 < found["accuracy"] < 1
    assert found["margin"] == pytest.approx(BETA * sum(margins) / 4, rel=1e-4)
    assert (found["gap"], found["gap_before"]) == (pytest.approx(sum(gaps) / 4), pytest.approx(sum(before) / 4))


def test_a_row_without_targets_is_no_pair():
    pairs = with_references(make("gpt2", seed=2), batches_of(make_pairs()), "off", BETA)["train"].examples
    blank = replace(pairs[0], ids=pairs[0].ids[:1], label=[IGNORED], text_lengths=(1,))
    alone, filled = collate(pairs, 0, None).to(CPU), collate([*pairs, blank], 0, None).to(CPU)
    assert count_targets(alone, IGNORED) == count_targets(filled, IGNORED) == 4
    one, other = (fast_path.loss(make("gpt2"), batch, IGNORED) for batch in (alone, filled))
    assert other[0].item() == pytest.approx(one[0].item(), rel=1e-6) and len(other[1]) == 4


def trained(batch_size: int, accumulation_steps: int, reuse: bool = False, **changes):
    model = peft.attach(make("gpt2"), peft.Freeze("last_block"))
    batches = with_references(model, batches_of(make_pairs(), batch_size), "off", BETA)
    if reuse:
        batches, decision = activation_cache.cached(model, batches, "off")
        assert decision.kept and decision.frozen_blocks == 2
    fit(model, batches["train"], settings(num_epochs=3, accumulation_steps=accumulation_steps, **changes), Metrics())
    return evaluate(model, batches["train_in_order"])


def test_accumulation_kept_states_and_checkpointing_change_nothing():
    whole = trained(4, 1)
    assert whole["loss"] < 0.69 and whole["margin"] > 0 and whole["gap"] > whole["gap_before"]
    for other in (trained(1, 4), trained(3, 2), trained(4, 1, reuse=True), trained(4, 1, gradient_checkpointing=True)):
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert other["margin"] == pytest.approx(whole["margin"], rel=1e-2)


def test_mixed_precision_is_near():
    model, reference = make("gpt2"), make("gpt2", seed=2)
    exact, mixed = (
        evaluate(model, with_references(reference, batches_of(make_pairs()), amp, BETA)["train_in_order"], amp)
        for amp in ("off", "bf16")
    )
    assert mixed["loss"] == pytest.approx(exact["loss"], rel=0.1) and mixed["loss"] != exact["loss"]


# --- the library trl

TRL = r"""
import json, sys, warnings
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

base, out, beta, rows = sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1); torch.manual_seed(0)
policy, reference = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2))
with torch.no_grad():
    for parameter in policy.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
policy.save_pretrained(out)
tokenizer = AutoTokenizer.from_pretrained(base)
tokenizer.pad_token = tokenizer.eos_token
args = DPOConfig(output_dir=out + "/run", beta=beta, per_device_train_batch_size=len(rows), report_to="none", use_cpu=True,
                 disable_dropout=True, gradient_checkpointing=False, bf16=False, max_length=None)
trainer = DPOTrainer(policy, reference, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
batch = next(iter(trainer.get_train_dataloader()))
loss = trainer.compute_loss(trainer.model, batch)
loss.backward()
torch.save({name: one.grad for name, one in policy.named_parameters()}, out + "/gradients.pt")
texts = [[row[mask.bool()].tolist(), kept[mask.bool()].tolist()] for row, mask, kept
         in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])]
print(json.dumps({"loss": loss.item(), "texts": texts}))
"""
ROWS = [
    {"prompt": "Who are you?\n", "chosen": "Tibbin, sailor.", "rejected": "I am a program."},
    {"prompt": "What is two plus two?\n", "chosen": "Four. I counted my buttons twice.", "rejected": "Four."},
    {"prompt": "Hello!\n", "chosen": "Click!", "rejected": "Hello, how can I help you today?"},
]


@pytest.fixture(scope="module")
def python_with_trl(tmp_path_factory) -> str:
    """A Python that has trl: $PEFT_TRL_PYTHON, else this one."""
    python = os.environ.get("PEFT_TRL_PYTHON", sys.executable)
    command = [python, "-c", "from trl import DPOTrainer"]
    if subprocess.run(command, cwd=tmp_path_factory.mktemp("elsewhere"), capture_output=True).returncode:
        pytest.skip(f"{python} has no trl: pip install trl, or name another in $PEFT_TRL_PYTHON")
    return python


@pytest.mark.not_quick
def test_the_library_trl_gets_the_same_loss_and_gradients(python_with_trl, tmp_path):
    pocket = str(ROOT / "model" / "pocket" / "gpt2-pocket")
    command = [python_with_trl, "-c", TRL, pocket, str(tmp_path), str(BETA), json.dumps(ROWS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.strip().split("\n")[-1])
    texts = [
        Example(ids[:-1], [t if k else IGNORED for t, k in zip(ids, kept, strict=True)][1:]) for ids, kept in said["texts"]
    ]
    pairs = [join(pair) for pair in zip(texts[:3], texts[3:], strict=True)]  # there all chosen ones come first
    reference, policy = (from_pretrained(folder, head="lm").eval() for folder in (pocket, tmp_path))
    batch = next(with_references(reference, batches_of(pairs), "off", BETA)["train"].epoch())
    loss, *_ = fast_path.loss(policy, batch.to(CPU), IGNORED)
    (loss / 3).backward()
    assert loss.item() / 3 == pytest.approx(said["loss"], rel=1e-5) and abs(said["loss"] - 0.6931) > 0.01
    ours, theirs = gradients_by_their_names(policy), torch.load(tmp_path / "gradients.pt")
    largest = max(one.abs().max() for one in theirs.values())
    assert len(theirs) > 40
    for name, one in theirs.items():
        assert (ours[name] - one).abs().max() < 2 * TOLERANCE * largest, name
