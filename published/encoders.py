"""BERT, RoBERTa and SciBERT on three small tasks, in full and with adapters; five seeds, mean and standard deviation."""

from config import Run, override
from published.table import Row, Table

SEEDS = (347913, 594729, 162850, 95842, 43288)
BERT, ROBERTA, SCIBERT = "bert-base-uncased", "roberta-base", "allenai/scibert_scivocab_uncased"
FULL = Run(trainable_layers="all")
ADAPTER = Run(trainable_layers="adapter")

# (model, method, task, accuracy, its deviation, macro-F1, its deviation), as fractions
SUPERVISED = [
    (BERT, FULL, "restaurant", 0.7587, 0.0175, 0.5441, 0.0445),
    (ROBERTA, FULL, "restaurant", 0.7857, 0.0047, 0.5791, 0.0166),
    (SCIBERT, FULL, "restaurant", 0.7720, 0.0064, 0.6201, 0.0141),
    (BERT, FULL, "acl", 0.5669, 0.0362, 0.1820, 0.0381),
    (ROBERTA, FULL, "acl", 0.5698, 0.0070, 0.2048, 0.0023),
    (SCIBERT, FULL, "acl", 0.6547, 0.0091, 0.2844, 0.0110),
    (BERT, FULL, "agnews", 0.9205, 0.0038, 0.9190, 0.0038),
    (ROBERTA, FULL, "agnews", 0.9197, 0.0066, 0.9181, 0.0068),
    (SCIBERT, FULL, "agnews", 0.9042, 0.0030, 0.9028, 0.0032),
    (ROBERTA, ADAPTER, "restaurant", 0.6500, 0.0138, 0.2626, 0.0103),
    (ROBERTA, ADAPTER, "acl", 0.5036, 0.0144, 0.1178, 0.0103),
    (ROBERTA, ADAPTER, "agnews", 0.7071, 0.0603, 0.7011, 0.0583),
]


def _row(number: int, form: str, model: str, method: Run, task: str, *values: float) -> Row:
    what = "adapter" if method is ADAPTER else "all layers"
    run = override(method, Run(model=model, dataset=f"{task}_{form}"))
    percent = [round(100 * value, 2) for value in values]
    published = dict(zip(("test", "test_macro_f1"), percent[::2], strict=False))
    spread = dict(zip(("test", "test_macro_f1"), percent[1::2], strict=False))
    return Row(number, f"{model.split('/')[-1]}, {task}, {what}", run, published, published_std=spread or None)


ADAPTER_TABLE = Table(
    "encoders-adapter",
    "fine-tuning in full and with adapters, measured there on one GPU with five seeds",
    [_row(number, "sup", *values) for number, values in enumerate(SUPERVISED, 1)],
    metrics=("test", "test_macro_f1"),
    stand_in=True,
    seeds=SEEDS,
)
FEW_SHOT_TABLE = Table(
    "encoders-fewshot",
    "the same with 32 training texts (8 per class where there are more than 4 classes); the log describes these runs and "
    "prints no figures for them",
    [_row(number, "fs", *values[:3]) for number, values in enumerate(SUPERVISED, 1)],
    metrics=("test", "test_macro_f1"),
    stand_in=True,
    seeds=SEEDS,
)
