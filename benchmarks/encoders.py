"""Compares DistilBERT on SST-2 in four ways, and GPT-2 small with LoRA, with transformers' Trainer and peft."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.inputs import spam_texts, sst2_texts, write_distilbert, write_gpt2
from benchmarks.measure import ROOT, Comparison, Side, last_line, precision_of
from benchmarks.spam import our_run
from data.glue import SST2_RECIPE
from data.spam import RECIPE

TITLE = "Encoders and LoRA, against transformers and peft"
PACKAGES = {"transformers": "5.23.0", "peft": "0.21.2", "accelerate": "1.15.0"}
REPEATS = 3
N_TRAIN, BATCH = 3200, 32  # of SST-2
N_SPAM, N_STEPS = 58, 10  # of GPT-2: 81 texts train, in batches of 8


@dataclass(frozen=True)
class Row:
    """One row: `ours` are our flags, `theirs` those of peers/hf_trainer.py, beside the flags that all rows share."""

    title: str
    ours: str  # flags
    theirs: str
    epochs: int = 1
    peer: str = "transformers"


LORA = f"--lora_rank 8 --lora_alpha {SST2_RECIPE['lora_alpha']:g}"
NEVER_CLIPPED = (
    f"--lr_scheduler_type {RECIPE['lr_scheduler_type']} --weight_decay {RECIPE['weight_decay']} --max_grad_norm 0"
)
ROWS = {
    1: Row("DistilBERT on SST-2, all layers", "--trainable_layers all", "--method full"),
    2: Row(
        "DistilBERT on SST-2, LoRA on q and v, and the head",
        f"--trainable_layers lora {LORA} --lora_target attn.q,attn.v",
        f"--method lora {LORA} --lora_target q_lin,v_lin",
        peer="transformers + peft",
    ),
    3: Row(
        "DistilBERT on SST-2, the head alone",
        "--trainable_layers last_layer --dropout 0",
        "--method head --no_dropout",
        epochs=3,
    ),
    4: Row(
        "DistilBERT on SST-2, bypass from every layer",
        "--trainable_layers bypass --dropout 0",
        "--method bypass --no_dropout",
        epochs=3,
    ),
    5: Row(
        "GPT-2 small, LoRA on everything, 8 x 120 tokens",
        "--trainable_layers lora --lora_rank 16 --lora_alpha 16 --lora_scaling alpha/r --lora_init kaiming "
        "--trainable_token_pos flexible --context_length 120 --trim no",
        f"--method lora --lora_rank 16 --lora_alpha 16 --lora_target all-linear --max_length 120 --padded {NEVER_CLIPPED}",
        peer="transformers + peft",
    ),
}
GPT2 = 5


def comparisons(rows: list[int], args, folder: Path) -> Iterator[Comparison]:
    """Yield what is measured for these rows, see spam.py."""
    n_train = max(BATCH, round(args.fraction * N_TRAIN))
    for row in rows:
        if row == GPT2:
            steps = max(2, round(args.fraction * N_STEPS))
            flags, csv = spam_texts(args.data_dir, folder / f"messages-{N_SPAM}", N_SPAM)
            checkpoint = write_gpt2(folder / "gpt2-small-classifier", args.data_dir, head=True)
            how = f"--batch_size 8 --max_steps {steps}"
            yield compare(row, args, checkpoint, [*flags, *how.split(), "--eval_train", "no"], csv, how, folder)
        else:
            flags, csv = sst2_texts(args.data_dir, folder / "sentences", n_train, args.fraction)
            checkpoint = write_distilbert(folder / "distilbert", args.data_dir)
            how = f"--batch_size {BATCH}"
            theirs = f"{how} --max_length {SST2_RECIPE['context_length']}"
            yield compare(row, args, checkpoint, [*flags, *how.split()], csv, theirs, folder)


def compare(row: int, args, checkpoint: Path, flags: list[str], csv: Path, how: str, folder: Path) -> Comparison:
    """Return the comparison of one row, in the same precision on both sides."""
    one = ROWS[row]
    precision = precision_of(args.amp)
    ours = partial(our_side, [*flags, *one.ours.split()], args.amp, checkpoint)
    words = [*how.split(), *one.theirs.split(), *(["--bf16"] if precision == "bf16" else [])]
    program = [sys.executable, "-P", str(ROOT / "benchmarks/peers/hf_trainer.py"), "--checkpoint", str(checkpoint)]
    theirs = partial(their_side, [*program, "--data", str(csv), *words], folder)
    return Comparison(
        row,
        one.title,
        one.peer,
        f"{precision} / {precision}",
        ours(one.epochs, folder / f"row{row}"),
        theirs(one.epochs),
        # Nothing trained yet: that both begin with the same weights and measure on the same texts.
        check=(start_loss(ours(0, folder / f"row{row}-start")), start_loss(theirs(0))),
        extra={"fraction": args.fraction},
    )


def our_side(flags: list[str], amp: str, checkpoint: Path, epochs: int, output: Path) -> Side:
    """Return our command line with that many epochs."""
    return our_run([*flags, "--num_epochs", str(epochs)], amp, checkpoint, output)


def their_side(command: list[str], folder: Path, epochs: int) -> Side:
    """Return the peer's program with that many epochs, run in a folder where nothing hides its packages."""
    return Side([*command, "--num_epochs", str(epochs)], folder, last_line)


def start_loss(side: Side) -> Side:
    """Return the same program, of whose measurements only the validation loss is read."""
    return Side(side.command, side.cwd, lambda output: {"start_loss": side.read(output)["validation_loss"]})
