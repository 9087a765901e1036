"""Measure how far our models are from transformers' with the same weights, and write results/parity.json.

python -m tests.docs.measure_parity

The models are small and random, in fp32 on the CPU; the texts have 20, 13 and 6 tokens, padded on the right. A distance is
the largest difference divided by the reference's largest absolute value. Written is the largest distance over hidden states
and logits, and over the gradients of all parameters.
"""

import argparse
import json
import tempfile

import torch
from torch import nn
from torch.nn import functional as F

from model import from_pretrained
from tests.helpers.encoder_parity import KINDS, MASK, VOCAB
from tests.helpers.parity import distance, gradients_by_their_names, reference
from tests.helpers.paths import ROOT

FILE = ROOT / "results" / "parity.json"


def measure(theirs: nn.Module, inputs: dict, **of_theirs) -> dict[str, float]:
    """Return the largest distance of a forward pass and of its gradients, of a language model and ours with its weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = from_pretrained(folder, head="lm").eval()
    mask = inputs["attention_mask"]
    real = mask.bool()
    expected = theirs(**inputs, **of_theirs, output_hidden_states=True)
    logits = ours(**inputs)
    pairs = [(logits, expected.logits), (ours.encode(**inputs), expected.hidden_states[-1])]
    for i, entering in enumerate(expected.hidden_states[:-2]):  # the last one is GPT-2's behind its last LayerNorm
        pairs.append((ours.run_blocks(entering, mask, i, i + 1), expected.hidden_states[i + 1]))
    forward = [distance(ours_[real], theirs_[real]) for ours_, theirs_ in pairs]
    labels = torch.randint(5, VOCAB, mask.shape)[real]
    for output in (logits, expected.logits):
        F.cross_entropy(output[real], labels).backward()
    translated = gradients_by_their_names(ours)
    gradients = [
        distance(translated[name], parameter.grad)
        for name, parameter in theirs.named_parameters()
        if not name.endswith(("key.bias", "k_lin.bias"))  # zero but for rounding: it adds the same to a query's every score
    ]
    return {"forward": max(forward), "gradients": max(gradients)}


def main() -> None:
    torch.manual_seed(1)
    ids, positions = torch.randint(VOCAB, MASK.shape), torch.arange(MASK.shape[1])[None]
    inputs = {"input_ids": ids, "attention_mask": MASK}
    measured = {"GPT-2": measure(reference("GPT2LMHeadModel"), inputs, position_ids=positions)}
    for name, title in (("distilbert", "DistilBERT"), ("bert", "BERT"), ("roberta", "RoBERTa")):
        measured[title] = measure(KINDS[name].make("ForMaskedLM"), KINDS[name].both_ways(MASK)[1])
    FILE.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"saved {FILE.relative_to(ROOT)}: {measured}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
