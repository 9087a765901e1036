"""The chat table: rows as data against the log, and the table run end to end on a small model."""

import json
import re
from pathlib import Path

import pytest

import experiments
from config import Run
from model import hub
from pipeline import answers, plots
from pipeline.stand_ins import choose
from published import chat, get_table
from tests.helpers.small import make_checkpoint, write_dialogues
from utils.errors import UserError

TABLE = get_table("chat")
PLANNED, LOGGED = TABLE.rows[:22], TABLE.rows[22:]


@pytest.fixture(scope="module")
def log(shared):
    return (shared / "seeds" / "3_chatglm_lora_freeze_ptuning_log.md").read_text(encoding="utf-8")


# --- rows as data


def test_the_planned_rows_are_those_of_the_log(log):
    printed = [[cell.strip() for cell in line.strip("| ").split("|")] for line in re.findall(r"^\| \d+ \|.*", log, re.M)]
    assert [row.number for row in PLANNED] == [int(cells[0]) for cells in printed] == list(range(1, 23))
    for row, (_, method, weights, layers, auxiliary) in zip(PLANNED, printed, strict=True):
        run = row.run
        assert run.trainable_layers == {"Freeze": "freeze", "LoRA": "lora", "P-Tuning": "prefix"}[method]
        assert run.layers == {"25-27": "last3", "0-2": "first3", "0-27": "all", "-": None}[layers]
        what = {"mlp": "mlp", "qkv": "qkv", "query_key_value": "attn.q,attn.k,attn.v", "prefix_encoder": None}[weights]
        assert what == (run.part if method == "Freeze" else run.lora_target)
        assert (run.auxiliary_dataset, run.auxiliary_samples) == (
            ("general", 10000) if auxiliary == "Yes" else (None, None)
        )
        assert (run.learning_rate, run.num_epochs, run.eval_generate) == (1e-5, 10, 100) and row.published == {}
    for words in ("学习率统一设置为 1e-5", "训练轮数为 10 轮", "辅助训练集使用 10000 条数据", "评估时使用 100 个样本"):
        assert words in log


def test_the_logged_rows_are_those_of_the_log(log):
    commands, results = re.findall(r"```bash\n(.*?)```", log, re.S), re.findall(r"```json\n(.*?)```", log, re.S)
    assert len(LOGGED) == len(commands) == len(results) == 6
    for row, command, result in zip(LOGGED, commands, map(json.loads, results), strict=True):
        flags = dict(re.findall(r"--(\w+) (\S+)", command))
        assert row.published == {"mean_train_loss": result["train_loss"], "runtime": result["train_runtime"]}
        assert row.run.learning_rate == float(flags["learning_rate"]) and row.run.num_epochs == result["epoch"]
        assert bool(row.note.startswith("the printed command")) == (result["epoch"] != float(flags["num_train_epochs"]))
        assert (row.run.source_prefix is not None) == ("source_prefix" in flags)
        target = flags.get("lora_target", "")
        numbers = {int(number) for number in re.findall(r"(\d+)\.", target)}
        assert row.run.layers == {(): "all", (0, 1, 2): "first3", (25, 26, 27): "last3"}[tuple(sorted(numbers))]
        assert row.run.lora_target == ("mlp" if "mlp" in target else chat.QKV)


def chosen(number: int, **overrides):
    """What is run for a row with these flags."""
    row = TABLE.base if number == 0 else TABLE.row(number)
    return choose(TABLE, row, Run(**overrides))


def test_rates_keep_their_distances_on_the_shipped_model(alone):
    rates = [chosen(number).run.learning_rate for number in (1, 23, 24)]  # offline that is gpt2-pocket
    assert rates == [2e-4, 1e-3, 2e-2]
    by_path = chosen(1, checkpoint=str(hub.local("gpt2-pocket"))).run
    assert by_path.learning_rate == 2e-4  # whichever way the same model is given
    assert chosen(1, learning_rate=0.5).run.learning_rate == 0.5
    assert chosen(1, model="gpt2-small").run.learning_rate == 1e-5


def test_auxiliary_dialogues_are_those_there_are(alone):
    whole = chosen(2)
    assert whole.run.auxiliary_samples == 0
    assert whole.note == "all 137 auxiliary dialogues there are, for the 10,000 of the plan"
    some = chosen(2, auxiliary_samples=20)
    assert some.run.auxiliary_samples == 20 and some.notes == ()
    assert chosen(1, auxiliary_samples=20).run.auxiliary_samples is None
    (alone / "data" / "chat_sft").mkdir(parents=True)
    path = write_dialogues(alone / "data" / "chat_sft" / "alpaca_en_demo.json")
    found = chosen(2, data_dir=str(alone / "data"))
    assert found.run.auxiliary_dataset == found.run.general_dataset == str(path) and "all 32 auxiliary" in found.note
    found = chosen(2, data_dir=str(alone / "data"), auxiliary_dataset="general", general_dataset="none")
    assert (found.run.auxiliary_dataset, found.run.general_dataset) == ("general", "none")
    found = chosen(1, data_dir=str(alone / "data"))
    assert (found.run.auxiliary_dataset, found.run.general_dataset) == (None, str(path))


def test_nothing_is_trained_in_row_0(alone):
    assert chosen(0, num_epochs=3).run.num_epochs == 0


# --- end to end


@pytest.fixture(scope="session")
def four_blocks(tmp_path_factory, small_data):
    text = (small_data / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8")
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "four", text, n_layers=4)


@pytest.fixture
def table(alone, four_blocks, capsys):
    """table("--rows", ...): on small files for a step per row. Returns what was printed, the lines, the Markdown."""
    path, other = write_dialogues(alone / "some.json"), write_dialogues(alone / "other.json", 20, "cash")
    base = {"checkpoint": four_blocks, "dataset": path, "general_dataset": other, "auxiliary_dataset": other}
    base |= {
        "max_steps": 1,
        "learning_rate": 0.05,
        "eval_generate": 2,
        "max_target_length": 5,
        "eval_train": "no",
        "amp": "off",
        "device": "cpu",
    }
    base |= {"output_dir": alone / "table"}
    argv = [str(word) for name, value in base.items() for word in (f"--{name}", value)]

    def run(*flags):
        capsys.readouterr()
        assert experiments.main(["--table", "chat", *flags, *argv]) == 0
        folder = alone / "table"
        return (
            capsys.readouterr().out,
            json.loads((folder / "table-chat.json").read_text()),
            (folder / "table-chat.md").read_text(),
        )

    return run


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}


def test_every_row_is_filled_once(table, alone):
    for name in ("sacrebleu", "rouge_score", "matplotlib"):
        pytest.importorskip(name, reason=f"needs {name}")
    out, lines, text = table()
    assert [line["row"] for line in lines] == list(range(29))
    for line in lines:
        assert line["measured"].keys() == set(TABLE.metrics)
        assert f"| {line['row']} | {line['title']} |" in text and f"`{line['command']}`" in text
    assert "new style learned" in text and "old knowledge kept" in text
    even = ", ".join(map(str, range(2, 23, 2)))
    assert f"- Rows {even}: all 16 auxiliary dialogues there are, for the 10,000 of the plan.\n" in text
    assert "plot  " in out and (alone / "table" / "table-chat.png").read_bytes().startswith(b"\x89PNG")
    base, moved = lines[0]["measured"]["test_loss"], {line["measured"]["test_loss"] for line in lines[1:]}
    assert base not in moved
    before = stamps(alone / "table")
    assert table()[1] == lines and stamps(alone / "table") == before and len(before) >= 20


def test_without_the_libraries_losses_are_there_and_scores_come_later(table, alone, monkeypatch):
    def no_matplotlib():
        raise UserError("plots need matplotlib: pip install matplotlib")

    with monkeypatch.context() as patch:
        patch.setattr(answers, "find_spec", lambda name: None)
        patch.setattr(plots, "need_matplotlib", no_matplotlib)
        out, lines, text = table("--rows", "1-2")
    losses = [line["measured"] for line in lines]
    assert all(one.keys() == {name for name in TABLE.metrics if name.endswith(("loss", "perplexity"))} for one in losses)
    assert "pip install sacrebleu rouge-score; the same command then adds the scores" in text
    assert "no plot: plots need matplotlib: pip install matplotlib" in out
    pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    pytest.importorskip("rouge_score", reason="ROUGE needs rouge-score")
    trained = {path: path.stat().st_mtime_ns for path in alone.rglob("trained.safetensors")}
    _, lines, text = table("--rows", "1-2")
    assert all(line["measured"].keys() == set(TABLE.metrics) for line in lines) and "pip install" not in text
    assert trained == {path: path.stat().st_mtime_ns for path in alone.rglob("trained.safetensors")}
    assert [{name: line["measured"][name] for name in one} for line, one in zip(lines, losses, strict=True)] == losses


@pytest.mark.parametrize(
    "argv, what",
    [
        (["--rows", "29"], "the table chat has no row 29; it has 1-28"),
        (["--dataset", "spam-pocket"], "is about dialogues, and spam-pocket has none"),
        (["--auxiliary_dataset", "spam-pocket"], "--auxiliary_dataset is 'spam-pocket', which has no dialogues"),
        (["--rows", "1", "--row", "1"], "with --table use --rows"),
    ],
)
def test_what_is_refused(argv, what, alone):
    with pytest.raises(UserError, match=re.escape(what)):
        experiments.main(["--table", "chat", "--model", "gpt2-pocket", *argv])
    assert not Path("runs").exists()  # before anything ran
