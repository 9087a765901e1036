"""RoBERTa on SST-2 and RTE: full fine-tuning, LoRA and BitFit, three epochs each, evaluated every 500 and 100 steps.

The trainer's defaults of that time: AdamW 5e-5, linear decay to zero, no weight decay, no warmup. Its 12,627 and 468 steps
come out for batches of 8 with two accumulated, and an epoch's last, odd batch left out; here that one makes a step.
"""

from config import Run, override
from published.table import Row, Table


def numbers(text: str) -> tuple[float, ...]:
    """Return accuracies as the log prints them, evaluation after evaluation."""
    return tuple(map(float, text.split()))


SST2_FULL = numbers(
    "91.51 90.71 92.66 92.43 92.55 92.55 93.12 93.46 93.35 93.12 93.23 93.35 92.89 93.23 92.89 93.92 94.38 93.58 "
    "93.35 93.81 93.58 93.00 93.69 93.81 94.04"
)
SST2_LORA = numbers(
    "49.08 50.92 56.54 85.21 88.65 88.88 89.11 90.14 90.25 90.71 90.83 90.37 91.40 91.86 90.83 91.28 91.17 91.40 "
    "91.17 91.28 91.40 91.17 91.28 91.17"
)
SST2_BITFIT = numbers(
    "52.18 50.92 50.92 50.92 84.86 85.89 86.24 86.70 87.16 87.27 87.50 87.84 88.07 88.07 87.84 88.65 88.30 88.76 "
    "88.88 89.11 88.76 89.22 89.11 89.11 89.33"
)
RTE_FULL = numbers("52.71 52.71 64.98 69.31")
RTE_BITFIT = numbers("48.01 49.10 48.74 48.74")
RTE_LORA = numbers("52.71 52.71 52.71 52.71")


def _row(number: int, title: str, run: Run, method: Run, series: tuple[float, ...], minutes: float, note: str = "") -> Row:
    published = {"validation": series[-1], "minutes": minutes}
    return Row(number, title, override(run, method), published, note, series)


_RECIPE = {"model": "roberta-base", "num_epochs": 3, "batch_size": 8, "accumulation_steps": 2}
SST2 = Run(dataset="sst2", eval_steps=500, **_RECIPE)
RTE = Run(dataset="rte", eval_steps=100, **_RECIPE)
FULL = Run(trainable_layers="all")
LORA = Run(trainable_layers="lora", lora_rank=8, lora_alpha=8.0, lora_target="q,v", train_head="no")
BITFIT = Run(trainable_layers="bitfit", train_head="no")
FROZEN_HEAD = "the new head stays as it was drawn"

TABLE = Table(
    "roberta-glue",
    "notes on RoBERTa with BitFit and LoRA, accuracy on the development sets after the last evaluation",
    [
        _row(1, "SST-2, all layers", SST2, FULL, SST2_FULL, 52.3),
        _row(2, "SST-2, LoRA", SST2, LORA, SST2_LORA, 32.1, f"declared as a language model's, so {FROZEN_HEAD}"),
        _row(3, "SST-2, BitFit", SST2, BITFIT, SST2_BITFIT, 29.5, f"{FROZEN_HEAD}, but for its biases"),
        _row(4, "RTE, all layers", RTE, FULL, RTE_FULL, 12.0),
        _row(5, "RTE, BitFit", RTE, BITFIT, RTE_BITFIT, 5.0, "at chance, as row 6: the head never trained"),
        _row(6, "RTE, LoRA", RTE, LORA, RTE_LORA, 5.1, "146 of 277: a constant answer"),
    ],
    metrics=("validation",),
    stand_in=True,
)  # fmt: skip
