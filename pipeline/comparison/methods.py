"""The methods that `--table methods` compares, a line each. A line added here is a row of the table.

LoRA and what is like it are on all Linear layers of the blocks, with alpha twice the rank. Each method brings learning
rates of its own, the lowest first; a job tries the first few of them, goes on beyond them where the best is an edge, and
chooses by the loss on validation data.

A row that names a data set trains on that, and is tested on the job's data like any other.
"""

from dataclasses import dataclass, replace

from config import Run
from data.preferences import DPO
from data.preferences import SHIPPED as PAIRS


@dataclass(frozen=True)
class Entry:
    """A row: what it is called, what it sets of a run, and the learning rates that are tried."""

    title: str
    run: Run
    rates: tuple[float, ...]  # for models of the size of MiniLM or SmolLM2-135M


LOW = (3e-5, 1e-4, 3e-4, 1e-3)  # for weights of the model itself
MIDDLE = (1e-4, 3e-4, 1e-3, 3e-3)
LARGE = (3e-4, 1e-3, 3e-3, 1e-2)  # for thin matrices
HIGH = (1e-3, 3e-3, 1e-2, 3e-2)  # for vectors
HIGHEST = (3e-3, 1e-2, 3e-2, 1e-1)

LORA = Run(trainable_layers="lora", lora_target="attn,mlp", lora_rank=16, lora_alpha=32.0, lora_scaling="alpha/r")
LORA = replace(LORA, lora_init="kaiming", lora_dropout=0.0)
VERA = Run(trainable_layers="vera", lora_target="attn,mlp", lora_dropout=0.0)
HIRA = Run(trainable_layers="hira", lora_target="attn,mlp", lora_rank=16, lora_dropout=0.0)

REFERENCE = Entry("LoRA, r = 16", LORA, LARGE)  # what every other method is compared with
ENTRIES = (
    Entry("full", Run(trainable_layers="all"), LOW),
    Entry("last block", Run(trainable_layers="last_block"), LOW),
    Entry("head alone", Run(trainable_layers="last_layer"), HIGH),
    Entry("LoRA, r = 4", replace(LORA, lora_rank=4, lora_alpha=8.0), LARGE),
    REFERENCE,
    Entry("LoRA, r = 64", replace(LORA, lora_rank=64, lora_alpha=128.0), LARGE),
    Entry("rsLoRA, r = 16", replace(LORA, lora_scaling="alpha/sqrt(r)"), MIDDLE),
    Entry("PiSSA, r = 16", replace(LORA, lora_init="pissa"), MIDDLE),
    Entry("LoRA+, r = 16", replace(LORA, lora_plus_ratio=16.0), MIDDLE),
    Entry("DoRA, r = 16", replace(LORA, trainable_layers="dora"), LARGE),
    Entry("VeRA, r = 256", VERA, HIGH),
    Entry("HiRA, r = 16", HIRA, HIGH),
    Entry("IA3", Run(trainable_layers="ia3"), HIGH),
    Entry("BitFit", Run(trainable_layers="bitfit"), HIGH),
    Entry("norms", Run(trainable_layers="freeze", part="norm"), HIGH),
    Entry("adapter, Pfeiffer", Run(trainable_layers="adapter", adapter_placement="pfeiffer"), LARGE),
    Entry("adapter, Houlsby", Run(trainable_layers="adapter", adapter_placement="houlsby"), LARGE),
    Entry("prefix of 16", Run(trainable_layers="prefix", prefix_length=16), HIGH),
    Entry("prompt of 16", Run(trainable_layers="prompt", prefix_length=16), HIGHEST),
    Entry("bypass", Run(trainable_layers="bypass"), LARGE),
    Entry("DPO, LoRA r = 16", replace(LORA, objective=DPO, dataset=PAIRS.name, num_epochs=3), MIDDLE),
)
UNTRAINED = Entry("nothing trained", Run(trainable_layers="last_block", num_epochs=0), (0.0,))
