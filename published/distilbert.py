"""A sentiment classifier on DistilBERT, taken to SST-2 in many ways: bypass branches, layer by layer, in full, LoRA.

The log names no learning rate; it is the trainer's of that time, AdamW 5e-5 with linear decay to zero. Batch sizes follow
from its steps per second. Accuracies are those on the 872 sentences of the development set.
"""

from config import Run, override
from published.table import Row, Table

# Three labels, in the order positive, neutral, negative; of them SST-2 has two.
BASE = Run(
    model="lxyuan/distilbert-base-multilingual-cased-sentiments-student", head_labels="negative,positive", dataset="sst2"
)
# No activation in the head, branches as PyTorch draws them, and only they are trained.
EARLY = Run(
    trainable_layers="bypass", train_head="no", bypass_head="linear", bypass_init="default", bypass_into="classifier"
)
LATER = override(EARLY, Run(bypass_into="dense"))
LORA = Run(trainable_layers="lora", train_head="no", lora_alpha=32.0)
TOP = "5.q_lin,5.k_lin,5.v_lin,pre_classifier"
TOP_FOUR = "2-5.q_lin,2-5.k_lin,2-5.v_lin,2-5.out_lin,pre_classifier"
TOP_THREE = "2.out_lin,3-5.q_lin,3-5.k_lin,3-5.v_lin,3-5.out_lin"
EVERYWHERE = "q_lin,k_lin,v_lin,out_lin,pre_classifier,classifier"


def _row(number: int, title: str, run: Run, accuracies: str, note: str = "", epochs: int = 2) -> Row:
    """Return a row. The last of the accuracies is the row's; those before it are of earlier epochs or stages."""
    series = tuple(map(float, accuracies.split()))
    run = override(override(BASE, Run(num_epochs=epochs)), run)
    return Row(number, title, run, {"validation": series[-1]}, note, series if len(series) > 1 else ())


def _lora(rank: int, target: str, alpha: float = 0.0, **more) -> Run:
    return override(LORA, Run(lora_rank=rank, lora_alpha=alpha or float(rank), lora_target=target, **more))


TABLE = Table(
    "distilbert-sst2",
    "a log of DistilBERT on SST-2, accuracy on the development set",
    [
        _row(1, "as it comes, nothing trained", Run(trainable_layers="last_layer"), "64.45", epochs=0),
        _row(2, "bypass from layer 4", override(EARLY, Run(bypass_taps="4", batch_size=64)), "75.11 75.11"),
        _row(3, "bypass from 4, 5", override(EARLY, Run(bypass_taps="4,5", batch_size=64)), "76.72 76.95"),
        _row(4, "bypass from 3, 4, 5", override(EARLY, Run(bypass_taps="3,4,5", batch_size=64)), "76.83 77.29"),
        _row(5, "the one from 3 three deep", override(LATER, Run(bypass_taps="3x3,4,5", batch_size=64)), "75.92 77.41"),
        _row(
            6, "all three deep",
            override(LATER, Run(bypass_taps="3,4,5", bypass_depth=3, batch_size=64)), "76.61 78.56",
        ),
        _row(
            7, "bypass from 2 to 5, two deep",
            override(LATER, Run(bypass_taps="2,3,4,5", bypass_depth=2, batch_size=64)), "75.92 78.21",
        ),
        _row(
            8, "the same, and the head",
            override(LATER, Run(bypass_taps="2,3,4,5", bypass_depth=2, train_head="yes", batch_size=32)),
            "77.41 76.95 77.41 78.21 77.52 77.98 78.67 79.24 79.47 79.36", epochs=10,
        ),
        _row(
            9, "layer by layer", Run(stages="layer_by_layer", trainable_layers="freeze", batch_size=32),
            "78.10 79.36 79.82 79.24 80.05 80.28 80.28 80.05 80.50 80.85 80.39 81.08",
            "two epochs for each of the six layers",
        ),
        _row(10, "all layers", Run(trainable_layers="all", batch_size=64), "87.84 88.88"),
        _row(11, "LoRA on the top layer, r = 8", _lora(8, TOP, 32.0, batch_size=64), "75.80"),
        _row(12, "LoRA on the top three and a half, r = 16", _lora(16, TOP_THREE, 32.0, batch_size=32), "83.03", epochs=10),
        _row(13, "LoRA on the top layer, r = 32", _lora(32, TOP, batch_size=64), "75.34"),
        _row(14, "LoRA on the top four, r = 32", _lora(32, TOP_FOUR, batch_size=64), "80.50"),
        _row(15, "LoRA on the top four, r = 128", _lora(128, TOP_FOUR, batch_size=64), "82.45"),
        _row(
            16, "LoRA everywhere, r = 256", _lora(256, EVERYWHERE, stages="10_rounds", batch_size=64),
            "83.03 85.32 85.89 86.81 86.58 86.58 86.93 87.16 87.73 88.07", "ten rounds of one epoch", epochs=1,
        ),
        _row(
            17, "LoRA and bypass from attention",
            override(
                _lora(16, TOP_THREE, 32.0, batch_size=16, bypass_taps="attn.2,attn.3,attn.4", bypass_depth=0),
                Run(trainable_layers="lora+bypass", bypass_head="linear", bypass_into="dense", bypass_init="default"),
            ),
            "81.42", "the attention outputs of three layers are added as they are",
        ),
        *(
            _row(
                number, f"layer by layer, then LoRA, r = {rank}",
                _lora(rank, "all", stages="layer_by_layer_then_lora", batch_size=32), accuracies,
                "printed are six rounds of LoRA; the rows before them are those of row 9",
            )
            for number, rank, accuracies in (
                (18, 16, "81.65 81.54 81.77 81.77 81.88 82.00"),
                (19, 128, "81.42 81.54 81.54 82.11 81.54 82.45"),
                (20, 256, "82.11 81.77 81.65 83.83 83.37 84.63"),
            )
        ),
    ],
    metrics=("validation",),
    stand_in=True,
)  # fmt: skip
