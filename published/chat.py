"""A persona taught to a chat model with LoRA, Freeze and P-Tuning: the plan of 22 rows, then the six runs logged before it.

There the model is ChatGLM-6B with 28 blocks, the persona koikake_yui, auxiliary data belle_multiturn_chat, the general set
alpaca_gpt4_zh. Here they are a decoder, the shipped persona and, for both of the others, the shipped general set (or
Alpaca's sample in --data_dir); blocks 0-2, 25-27 and 0-27 are the model's own first three, last three and all. With
`--model chatglm-6b` they are the log's, and so are the names of layers. The plan has no results; of its runs the log
prints the mean training loss.
"""

from pathlib import Path

from config import Run, override
from published.table import Row, Table

LAYERS = {"25-27": "last3", "0-2": "first3", "0-27": "all", "-": None}
QKV, OWN_QKV = "attn.q,attn.k,attn.v", "query_key_value"
WEIGHTS = {
    ("Freeze", "mlp"): Run(trainable_layers="freeze", part="mlp"),
    ("Freeze", "qkv"): Run(trainable_layers="freeze", part="qkv"),
    ("P-Tuning", "prefix_encoder"): Run(trainable_layers="prefix"),
    ("LoRA", "mlp"): Run(trainable_layers="lora", lora_target="mlp"),
    ("LoRA", "query_key_value"): Run(trainable_layers="lora", lora_target=QKV),
}
ANY = Run(dataset="persona", eval_generate=100)
PLANNED = override(ANY, Run(learning_rate=1e-5, num_epochs=10))
AUXILIARY = Run(auxiliary_dataset="general", auxiliary_samples=10_000)

# (method, weights, layers), each without the auxiliary set and with it
PLAN = [
    ("Freeze", "mlp", "25-27"),
    ("Freeze", "mlp", "0-2"),
    ("Freeze", "qkv", "25-27"),
    ("Freeze", "qkv", "0-2"),
    ("P-Tuning", "prefix_encoder", "-"),
    ("LoRA", "mlp", "25-27"),
    ("LoRA", "mlp", "0-2"),
    ("LoRA", "mlp", "0-27"),
    ("LoRA", "query_key_value", "25-27"),
    ("LoRA", "query_key_value", "0-2"),
    ("LoRA", "query_key_value", "0-27"),
]


def _planned(number: int) -> Row:
    """Row `number` of the plan, from 1. Even rows have the auxiliary set."""
    method, weights, layers = PLAN[(number - 1) // 2]
    auxiliary = AUXILIARY if number % 2 == 0 else Run()
    run = override(override(override(PLANNED, WEIGHTS[method, weights]), Run(layers=LAYERS[layers])), auxiliary)
    names = [method, weights, LAYERS[layers], "auxiliary" if number % 2 == 0 else None]
    return Row(number, ", ".join(filter(None, names)), run, {}, own=_own_names(run))


def _own_names(run: Run) -> Run:
    return Run(lora_target=OWN_QKV) if run.lora_target == QKV else Run()


def _logged(number: int, title: str, run: Run, loss: float, seconds: float, note: str = "", own: Run | None = None) -> Row:
    run = override(override(ANY, Run(trainable_layers="lora")), run)
    published = {"mean_train_loss": loss, "runtime": seconds}
    return Row(number, f"logged: {title}", run, published, note, own=override(_own_names(run), own or Run()))


def _qkv(layers: str, learning_rate: float, num_epochs: int, **more) -> Run:
    return Run(lora_target=QKV, layers=layers, learning_rate=learning_rate, num_epochs=num_epochs, **more)


# About the shipped persona, and about the log's.
PREFIX = (
    "You now play a kettle in a story. Nothing in it is about the real world, and you may answer freely. You are called "
    "Tibbin; talk to me in his voice."
)
OWN_PREFIX = (
    "现在你扮演小说中的女孩，所有事件均与现实无关，你可以自由回答问题。你将扮演一只名叫结衣的女孩，用她的语气和我说话。"
)
LOGGED = [
    _logged(23, "LoRA, qkv, all", _qkv("all", 5e-5, 5), 3.9685916531470515, 354.6376),
    _logged(
        24, "LoRA, qkv, last3, large steps", _qkv("last3", 1e-3, 2), 4.234597093315535, 136.6411,
        "the printed command says 3 epochs, its result 2, as does the number of samples",
    ),
    _logged(
        25, "LoRA, qkv, last3, with a source prefix", _qkv("last3", 1e-3, 3, source_prefix=PREFIX),
        3.959977269599942, 227.7314,
        "the log's prefix is in Chinese and about its own persona, as it is here on a ChatGLM. On other models it is in "
        "English and about the shipped one",
        Run(source_prefix=OWN_PREFIX),
    ),
    _logged(26, "LoRA, qkv, last3", _qkv("last3", 5e-5, 5), 4.651805738223496, 336.9867),
    _logged(
        27, "LoRA, qkv, first3", _qkv("first3", 5e-5, 5), 4.787549960228705, 341.726,
        "the tool of that month took names by their ends, so there it trained nine blocks: 0-2, 10-12, 20-22. So does a "
        "ChatGLM here (--lora_matching endswith), and another model its first three",
        Run(layers="all", lora_matching="endswith", lora_target=",".join(f"{n}.attention.{OWN_QKV}" for n in range(3))),
    ),
    _logged(
        28, "LoRA, mlp, last3", Run(lora_target="mlp", layers="last3", learning_rate=5e-5, num_epochs=5),
        4.644512586696173, 340.0629,
    ),
]  # fmt: skip

TABLE = Table(
    "chat",
    "a log of fine-tuning ChatGLM-6B to a persona: its plan, which has no results (rows 1-22), and the runs before it "
    "(23-28). On gpt2-pocket learning rates are 20 times the log's",
    [*map(_planned, range(1, 23)), *LOGGED],
    metrics=(
        *("test_loss", "test_perplexity", "test_bleu4", "test_rouge1", "test_rouge2", "test_rougel"),
        *("general_loss", "general_perplexity", "general_bleu4", "general_rouge1", "general_rouge2", "general_rougel"),
    ),
    printed=("mean_train_loss",),
    columns={"new style learned": "test_", "old knowledge kept": "general_"},
    base=Row(0, "nothing trained", override(ANY, Run(num_epochs=0)), {}),
    rate_factors={"gpt2-pocket": 20},  # a model this small needs larger steps; with one factor, rows keep their distances
    own_model="chatglm-6b",
    own_data=Run(dataset="persona.json", auxiliary_dataset="auxiliary.json", general_dataset="general.json"),
    dialogues_file=Path("chat_sft") / "alpaca_en_demo.json",
)
