"""Compares training steps on the CPU with those of transformers and peft; over weights in 4 bits, of bitsandbytes too.

Weights are drawn; both sides take their steps on the same batch, and the first loss is held to the other's.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import encoders, gpu
from benchmarks.gpu import LIBRARIES, ROUNDING, Steps, Where, compare_step
from benchmarks.inputs import write_drawn
from benchmarks.measure import CPU, Comparison
from model.gpt2 import GPT2_SIZES
from model.llama import LlamaConfig

TITLE = "Training steps, against transformers and peft"
PACKAGES = encoders.PACKAGES | {"bitsandbytes": "0.50.2"}
REPEATS = 3
MODELS = {"gpt2-small": GPT2_SIZES["gpt2-small"], "smollm2-135m": LlamaConfig()}
METHODS = {"lora": "LoRA on everything", "all": "all layers"}


def step(model: str, method: str, base_precision: str = "fp32", theirs: str = "", peer: str = LIBRARIES) -> Steps:
    """Return the row of a step of 8 x 120 tokens. Of LoRA's losses only the first is the same: it is drawn differently."""
    base = "" if base_precision == "fp32" else f", base in {base_precision}"
    return Steps(
        title=f"a step of {model}, {METHODS[method]}{base}, 8 x 120 tokens",
        method=method,
        batch_size=8,
        length=120,
        flags=("--base_precision", base_precision),
        against=LIBRARIES,
        peer=peer,
        tolerance=ROUNDING,
        compared=1 if method == "lora" else None,
        model=model,
        theirs=(*theirs.split(),),
    )


ROWS = {
    1: step("gpt2-small", "lora"),
    2: step("gpt2-small", "lora", "bf16"),
    3: step("gpt2-small", "all"),
    4: step("smollm2-135m", "lora"),
    5: step("smollm2-135m", "lora", "bf16"),
    6: step("smollm2-135m", "all"),
    7: step("smollm2-135m", "lora", "nf4", "--nf4", "bitsandbytes + peft"),
}
N_STEPS = 5
derived = gpu.derived  # whether losses agree, and what part of the product rate a step reaches


def comparisons(rows: list[int], args, folder: Path, where: Where | None = None) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py."""
    where = where or Where(CPU, MODELS, N_STEPS)
    for row in rows:
        one = ROWS[row]
        checkpoint = write_drawn(folder / f"{one.model}-classifier", where.sizes[one.model], head=True)
        yield compare_step(row, one, checkpoint, args, folder, where)
