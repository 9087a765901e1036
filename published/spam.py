"""The 19 rows of "Additional classification fine-tuning experiments" (S. Raschka, LLMs-from-scratch, chapter 6)."""

from config import Run
from published.table import Row, Table


def _row(number: int, title: str, run: Run, train: float, validation: float, test: float, minutes: float, note: str = ""):
    published = {"train": train, "validation": validation, "test": test, "minutes": minutes}
    return Row(number, title, run, published, note, position="last")


TABLE = Table(
    "spam",
    "the additional experiments of the book's chapter 6, measured there on an A100",
    [
        _row(1, "reference: last token, last block", Run(), 96.63, 99.33, 95.00, 0.28),
        _row(2, "first token", Run(trainable_token_pos="first"), 78.46, 80.54, 75.00, 0.28),
        _row(3, "last layer only", Run(trainable_layers="last_layer"), 78.65, 79.87, 72.00, 0.25),
        _row(4, "last two blocks", Run(trainable_layers="last_two_blocks"), 98.85, 98.66, 98.33, 0.33),
        _row(5, "all layers", Run(trainable_layers="all"), 99.62, 96.64, 96.67, 0.69),
        _row(6, "gpt2-medium", Run(model="gpt2-medium"), 87.50, 91.28, 84.67, 0.75),
        _row(7, "gpt2-large", Run(model="gpt2-large"), 99.52, 98.66, 96.67, 1.50),
        _row(
            8, "gpt2-xl", Run(model="gpt2-xl"), 99.81, 99.81, 98.33, 2.83,
            note="the published validation accuracy is impossible: 149 examples give 99.33% or 100.00%, never 99.81%",
        ),
        _row(9, "gpt2-xl, all layers", Run(model="gpt2-xl", trainable_layers="all"), 100.00, 98.66, 98.67, 8.12),
        _row(10, "random weights, all layers", Run(weights="random", trainable_layers="all"), 100.00, 96.64, 93.67, 0.69),
        _row(
            11, "LoRA", Run(trainable_layers="lora", lora_rank=16, lora_alpha=16.0), 100.00, 97.32, 96.67, 0.75,
            note="the source multiplies by alpha, not alpha/r, and wraps the new head too",
        ),
        _row(
            12, "LoRA on gpt2-xl", Run(model="gpt2-xl", trainable_layers="lora", lora_rank=16, lora_alpha=8.0),
            100.00, 98.66, 98.33, 5.79,
        ),
        _row(13, "padded to the full context", Run(context_length="model_context_length"), 83.08, 87.92, 78.33, 2.46),
        _row(14, "no padding, batch size 1", Run(no_padding=True, batch_size=1), 100.00, 98.66, 98.00, 1.75),
        _row(
            15, "no padding, 8 accumulated", Run(no_padding=True, batch_size=1, accumulation_steps=8),
            99.33, 98.66, 98.33, 1.70,
        ),
        _row(16, "last real token", Run(trainable_token_pos="flexible"), 99.42, 98.66, 98.33, 0.30),
        _row(17, "no causal mask", Run(disable_causal_mask=True), 99.23, 98.66, 95.33, 0.29),
        _row(
            18, "ignore_index for padding", Run(ignore_index=50256), 96.63, 99.33, 95.00, 0.28,
            note="no label is 50256, so the row must equal row 1 (the source never passes the flag on)",
        ),
        _row(19, "mean of all positions", Run(average_embeddings=True), 97.79, 99.33, 96.33, 0.32),
    ],
)  # fmt: skip
