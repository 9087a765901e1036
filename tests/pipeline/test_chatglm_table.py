"""The chat table on a ChatGLM: what each row is there, and all of them run on a small one with as many blocks."""

import json
import re
import shlex

import pytest
import torch
from safetensors import safe_open

import experiments
from config import Run, override
from data.registry import get_task
from model import architecture
from model.chatglm import ChatGLM, ChatGLMConfig
from model.registry import PUBLISHED
from model.tokenizers.chatglm import ChatGLMTokenizer
from peft.targets import find_parts, find_sites
from pipeline import chatglm_scores
from pipeline.flags import parse
from pipeline.resolve import resolve_run
from pipeline.stand_ins import choose
from published import get_table
from tests.helpers.small import write_dialogues
from tools.chatglm_tiny import make

TABLE = get_table("chat")
NINE = [0, 1, 2, 10, 11, 12, 20, 21, 22]  # what the first three were to the log's tool
PEFT_OF_THE_LOG = {"lora_rank": 8, "lora_alpha": 32.0, "lora_dropout": 0.1, "lora_scaling": "alpha/r"}


def on_its_model(number: int) -> Run:
    """Return a row's run on ChatGLM-6B, with every setting filled in."""
    run = TABLE.on_own_model(TABLE.base if number == 0 else TABLE.row(number))
    return resolve_run(run, get_task("persona"), PUBLISHED["chatglm-6b"])  # the file that it names isn't there


@pytest.fixture(scope="module")
def blocks():
    """Return a ChatGLM with the published number of blocks and no memory."""
    with torch.device("meta"):
        return ChatGLM(ChatGLMConfig(vocab_size=300, dim=16, n_heads=2, mlp_dim=32))


# --- rows as data


def test_the_logged_rows_are_the_commands_of_the_log(shared, blocks):
    log = (shared / "seeds" / "3_chatglm_lora_freeze_ptuning_log.md").read_text(encoding="utf-8")
    commands, results = re.findall(r"```bash\n(.*?)```", log, re.S), re.findall(r"```json\n(.*?)```", log, re.S)
    for number, command, result in zip(range(23, 29), commands, map(json.loads, results), strict=True):
        run, flags = on_its_model(number), dict(re.findall(r"--(\w+) (\S+)", command))
        assert run.model == "chatglm-6b" and run.learning_rate == float(flags["learning_rate"])
        assert run.weight_decay == float(flags["weight_decay"]) and run.lr_scheduler_type == flags["lr_scheduler_type"]
        assert run.batch_size == int(flags["per_device_train_batch_size"]) and run.num_epochs == result["epoch"]
        assert run.accumulation_steps == int(flags["gradient_accumulation_steps"]) and run.warmup_ratio == 0
        assert run.source_prefix == flags.get("source_prefix")
        assert (run.base_precision == "fp16") == ("--fp16" in command)
        assert {name: getattr(run, name) for name in PEFT_OF_THE_LOG} == PEFT_OF_THE_LOG
        theirs = find_sites(blocks, flags.get("lora_target", "query_key_value"), "all", "endswith")
        assert list(find_sites(blocks, run.lora_target, run.layers, run.lora_matching)) == list(theirs)
        assert len(theirs) == {23: 28, 27: 9, 28: 6}.get(number, 3)


def test_the_planned_rows_train_what_the_plan_says(blocks):
    numbers = {"first3": {0, 1, 2}, "last3": {25, 26, 27}, "all": {*range(28)}}
    for row in TABLE.rows[:22]:
        run = on_its_model(row.number)
        assert (run.learning_rate, run.num_epochs, run.batch_size) == (1e-5, 10, 8)
        assert (run.max_source_length, run.max_target_length, run.max_grad_norm) == (512, 512, 1.0)
        auxiliary = (None, 0) if row.number % 2 else ("auxiliary.json", 10000)
        assert (run.auxiliary_dataset, run.auxiliary_samples) == auxiliary
        if run.trainable_layers == "prefix":
            assert (run.prefix_length, run.prefix_projection, run.prefix_dropout) == (16, False, 0.1)
            continue
        if run.trainable_layers == "lora":
            assert {name: getattr(run, name) for name in PEFT_OF_THE_LOG} == PEFT_OF_THE_LOG
            paths = find_sites(blocks, run.lora_target, run.layers, run.lora_matching)
        else:
            paths = find_parts(blocks, run.layers, run.part)
        assert {int(path.split(".")[1]) for path in paths} == numbers[run.layers]
        kinds = {".".join(path.split(".")[2:]) for path in paths}
        assert kinds - {"mlp"} in ({"attn.qkv"}, {"mlp.up", "mlp.down"})
        assert ("attn.qkv" in kinds) == ("qkv" in row.title or "query_key_value" in row.title)


def test_a_row_is_its_own_on_a_model_of_the_kind_alone(alone):
    row = TABLE.row(27)
    assert choose(TABLE, row, Run(model="gpt2-pocket")).run.lora_matching is None
    flags = Run(lora_rank=2, dataset="persona")
    assert override(row.own, flags).lora_matching == "endswith" and row.own.lora_target.startswith("0.attention.")


def test_the_list_has_both_commands(capsys):
    assert experiments.main(["--list"]) == 0
    text = capsys.readouterr().out
    for row in TABLE.rows:
        line = next(one for one in text.splitlines() if "--model chatglm-6b" in one)
        text = text.replace(line, "", 1)
        words = re.search(r"python experiments\.py (--model.*)", line)
        assert words and parse(shlex.split(words[1]))[0] == TABLE.on_own_model(row)


# --- every row runs


@pytest.fixture(scope="module")
def tiny(shared, tmp_path_factory):
    """Return a drawn ChatGLM with the published number of blocks. Tests only read it."""
    folder = tmp_path_factory.mktemp("chatglm") / "tiny"
    make(shared / "golden/chatglm/small_ice", folder, dim=16)
    assert architecture(folder).model_type == "chatglm"
    return folder


@pytest.fixture
def table(tiny, tmp_path, monkeypatch):
    """Return a function that runs rows for a step each. It returns the lines of the table, and its Markdown."""
    monkeypatch.chdir(tmp_path)
    tokenizer = ChatGLMTokenizer.from_directory(tiny)  # to read it takes most of a short run's time
    monkeypatch.setattr(ChatGLMTokenizer, "from_directory", lambda folder: tokenizer)
    file, other = write_dialogues(tmp_path / "some.json", 8), write_dialogues(tmp_path / "other.json", 8, "cash")
    settings = {"checkpoint": tiny, "dataset": file, "general_dataset": other, "auxiliary_dataset": other, "max_steps": 1}
    settings |= {"eval_generate": 1, "max_target_length": 4, "batch_size": 2, "eval_train": "no", "device": "cpu"}
    argv = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]

    def run(*flags):
        assert experiments.main(["--table", "chat", "--output_dir", "table", *argv, *flags]) == 0
        lines = json.loads((tmp_path / "table/table-chat.json").read_text(encoding="utf-8"))
        return {line["row"]: line for line in lines}, (tmp_path / "table/table-chat.md").read_text(encoding="utf-8")

    return run


def test_every_row_runs(table, tmp_path):
    pytest.importorskip("jieba", reason="needs jieba: pip install jieba")
    lines, text = table()
    assert [*lines] == list(range(29))
    scores = {name for name in TABLE.metrics if name.endswith(("loss", "bleu4", "rougel"))}
    for line in lines.values():
        assert line["measured"].keys() >= scores and "--checkpoint" in line["command"]
    trained = {}
    for path in (tmp_path / "table").glob("*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        with safe_open(path.with_name("trained.safetensors"), "pt") as file:
            found = {int(n) for n in re.findall(r"blocks\.(\d+)\.", " ".join(file.keys()))}
        trained[result["config"]["lora_target"], result["config"]["layers"], result["config"]["learning_rate"]] = found
    (nine,) = [found for (target, *_), found in trained.items() if target.startswith("0.attention")]
    assert sorted(nine) == NINE
    assert trained["query_key_value", "last3", 5e-5] == {25, 26, 27} and trained["mlp", "first3", 1e-5] == {0, 1, 2}
    assert "Row 27: the tool of that month took names by their ends" in text


def test_without_jieba_scores_are_left_out_and_come_later(table, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(chatglm_scores, "find_spec", lambda name: None)
        lines, text = table("--rows", "9")
    assert lines[9]["measured"].keys() == {name for name in TABLE.metrics if name.endswith(("loss", "perplexity"))}
    assert "ROUGE on Chinese words needs jieba: pip install jieba; the same command then adds the scores" in text
    pytest.importorskip("jieba", reason="needs jieba: pip install jieba")
    lines, text = table("--rows", "9")
    assert lines[9]["measured"].keys() == set(TABLE.metrics) and "pip install" not in text
