"""Published rows as data: their commands, their numbers, and what a run is made of."""

import json
import re
import shlex
from dataclasses import asdict, fields, replace

import pytest

import experiments
from config import DEFAULTS, Run, override, resolve
from data.registry import TASKS
from experiments import find_row, parse, parse_rows
from model import canonical_name, config_of
from pipeline import job
from pipeline.flags import command, mend_misprints, to_flags
from pipeline.resolve import run_name
from pipeline.stand_ins import choose
from published import TABLES, get_table
from published.table import Row
from tests.helpers.paths import ROOT
from utils.errors import UserError

# As printed (seeds/4_*), misprints of rows 9 and 19 included; only the script's name is ours.
PUBLISHED = {
    1: "python experiments.py",
    2: "python experiments.py --trainable_token_pos first",
    3: "python experiments.py --trainable_layers last_layer",
    4: "python experiments.py --trainable_layers last_two_blocks",
    5: "python experiments.py --trainable_layers all",
    6: 'python experiments.py --model_size "gpt2-medium (355M)"',
    7: 'python experiments.py --model_size "gpt2-large (774M)"',
    8: 'python experiments.py --model_size "gpt2-xl (1558M)"',
    9: 'python experiments.py --model_size "gpt2-xl (1558M)"--trainable_layers all',
    10: "python experiments.py --weights random --trainable_layers all",
    11: "python experiments.py --trainable_layers lora --lora_rank 16 --lora_alpha 16",
    12: 'python experiments.py --trainable_layers lora --lora_rank 16 --lora_alpha 8 --model_size "gpt2-xl (1558M)"',
    13: 'python experiments.py --context_length "model_context_length"',
    14: "python experiments.py --no_padding --batch_size 1",
    15: "python experiments.py --no_padding --batch_size 1 --accumulation_steps 8",
    16: 'python experiments.py --trainable_token_pos "flexible"',
    17: "python experiments.py --disable_causal_mask",
    18: "python experiments.py --ignore_index 50256",
    19: "python experiments.py --average embeddings",
}
SPAM_ROWS = get_table("spam").rows
ALL_ROWS = [pytest.param(row, id=f"{table.name}-{row.number}") for table in TABLES.values() for row in table.rows]


def parsed(text: str) -> Run:
    """What a printed command says, with the model under its plain name."""
    run, options = parse(shlex.split(text)[2:])
    assert options == {}
    return override(run, Run(model=canonical_name(run.model))) if run.model else run


@pytest.fixture(scope="module")
def seed_file(shared):
    return (shared / "seeds" / "4_gpt2_spam_ablation_table.md").read_text(encoding="utf-8")


# --- the rows


@pytest.mark.parametrize("number", PUBLISHED)
def test_the_published_command_is_the_row(number):
    assert parsed(PUBLISHED[number]) == get_table("spam").row(number).run


def test_the_commands_above_are_those_of_the_source(seed_file):
    found = dict(re.findall(r"第 (\d+) 行：`python additional_experiments\.py(.*?)`", seed_file))
    assert {number: "python experiments.py" + found[str(number)] for number in PUBLISHED} == PUBLISHED
    assert len(found) == len(SPAM_ROWS) == 19


def test_the_published_numbers_are_those_of_the_source(seed_file):
    numbers = {}
    for line in re.findall(r"^\| \d+ \|.*$", seed_file, flags=re.MULTILINE):  # row 4 lacks a bar: no splitting at bars
        accuracies = re.findall(r"(\d+\.\d+)%", line)
        minutes = re.findall(r"(\d+\.\d+) 分钟", line)
        numbers[int(line.split()[1])] = [float(word) for word in accuracies + minutes]
    ours = {row.number: [row.published[key] for key in ("train", "validation", "test", "minutes")] for row in SPAM_ROWS}
    assert ours == numbers


@pytest.mark.parametrize("row", ALL_ROWS)
def test_a_rows_command_gives_the_row_again(row: Row):
    assert parsed(command(row.run)) == row.run


def test_rows_are_numbered_in_order_and_have_a_title():
    for table in TABLES.values():
        assert [row.number for row in table.rows] == list(range(1, len(table.rows) + 1))
        assert len({row.title for row in table.rows}) == len(table.rows)


def test_only_misprints_are_mended():
    assert mend_misprints(["--average", "embeddings"]) == ["--average_embeddings"]
    assert mend_misprints(["gpt2-xl (1558M)--weights", "random"]) == ["gpt2-xl (1558M)", "--weights", "random"]
    for words in (["embeddings"], ["--average_embeddings"], ["--output_dir", "a--b"], ["--model", "gpt2-xl (1558M)"]):
        assert mend_misprints(words) == words


# --- what a run is made of


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_field_has_a_value(task):
    names = {one.name for one in fields(Run)}
    assert DEFAULTS.keys() <= names and task.recipe.keys() <= names
    assert all(recipe.keys() <= task.recipe.keys() | DEFAULTS.keys() for recipe in task.model_recipes.values())
    assert not DEFAULTS.items() & task.recipe.items()  # one home for each default
    left_open = {name for name, value in asdict(resolve(Run(), task.recipe)).items() if value is None}
    found_by_name = {"model", "checkpoint", "tokenizer", "dataset", "data_dir", "output_dir"}
    none = {"source_prefix", "auxiliary_dataset", "general_dataset"} - task.recipe.keys()
    none |= {"text_column", "pair_column", "label_column"}
    # of these None means: no adapter, the model's own labels, one stage
    assert left_open == found_by_name | none | {"adapter", "head_labels", "stages"}


def test_the_published_recipe():
    # Chapter 6 of the book, and the script of these rows.
    published = {"learning_rate": 5e-5, "weight_decay": 0.1, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    published |= {"num_epochs": 5, "batch_size": 8, "seed": 123, "trainable_layers": "last_block", "lora_scaling": "alpha"}
    assert published.items() <= TASKS["spam"].recipe_for(config_of("gpt2-small")).items()
    assert TASKS["spam"].recipe_for(config_of("gpt2-pocket"))["learning_rate"] != published["learning_rate"]


@pytest.fixture
def prepared(monkeypatch):
    """main(argv) up to the training: the resolved run."""
    found = []
    monkeypatch.setattr(experiments, "run_one", lambda run, overrides, argv: found.append(job.prepare(run).run) or 0)

    def prepare(*argv: str) -> Run:
        assert experiments.main([*argv, "--dataset", "spam-pocket", "--model", "gpt2-pocket"]) == 0
        return found[-1]

    return prepare


def test_flag_over_row_over_recipe_over_default(prepared):
    plain, row, flag = prepared(), prepared("--row", "15"), prepared("--row", "15", "--batch_size", "3")
    assert (plain.batch_size, row.batch_size, flag.batch_size) == (8, 1, 3)  # the recipe, the row, the flag
    assert (plain.accumulation_steps, row.accumulation_steps, flag.accumulation_steps) == (1, 8, 8)  # the default, the row
    assert flag.no_padding is row.no_padding is True
    assert prepared("--row", "15", "--accumulation_steps", "2").accumulation_steps == 2
    assert (plain.learning_rate, prepared("--learning_rate", "0.5").learning_rate) == (1e-3, 0.5)  # the model's recipe
    assert prepared("--learning_rate", "0").learning_rate == 0.0  # 0 is a value, too


@pytest.mark.parametrize(
    "alias, name, value",
    [
        ("--model_size", "model", "gpt2-xl"),
        ("--num_train_epochs", "num_epochs", 3),
        ("--per_device_train_batch_size", "batch_size", 2),
        ("--gradient_accumulation_steps", "accumulation_steps", 4),
    ],
)
def test_aliases(alias, name, value):
    assert parse([alias, str(value)])[0] == parse([f"--{name}", str(value)])[0] == Run(**{name: value})


RUNS = {
    "nothing": Run(),
    "numbers": Run(learning_rate=1.2345678e-4, weight_decay=1 / 3, lora_alpha=16.0, dropout=0.0, warmup_ratio=1e-12),
    "negative numbers": Run(ignore_index=-100, lora_alpha=-1e-05),
    "words": Run(max_steps=0, resume=True, output_dir="a folder/it's here", model="owner/name"),
    "words that look like flags": Run(output_dir="--resume", source_prefix="-a=b --model x", tokenizer="-"),
    "switches that are off": Run(no_padding=False, packing=False, resume=False, average_embeddings=True),
    "every setting": resolve(Run(model="gpt2-small", dataset="spam"), TASKS["spam"].recipe),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_flags_are_the_inverse_of_the_parser(run):
    assert parse(to_flags(run))[0] == run
    assert parse(shlex.split(command(run))[2:])[0] == run


def test_whole_numbers_and_fractions_are_one_setting():
    assert Run(lora_alpha=16) == Run(lora_alpha=16.0) and type(Run(lora_alpha=16).lora_alpha) is float
    with pytest.raises(UserError, match=r"--lora_alpha is 1000.*; it must be a finite number"):
        Run(lora_alpha=10**400)


def test_the_same_run_has_one_directory(alone):
    runs = [Run(model="gpt2-pocket", dataset="spam-pocket", lora_alpha=alpha) for alpha in (16, 16.0, 17)]
    one, same, other = (job.prepare(run).directory for run in runs)
    assert one == same != other
    assert job.prepare(replace(runs[0], verbose=True)).directory == one


# What runs of the command line were called when their logs were kept. A new setting must leave these names alone.
KEPT = [
    path for path in (ROOT / "results").glob("*/*/result.json") if re.search("-seed[0-9]+-[0-9a-f]{8}$", path.parent.name)
]


def test_directories_keep_their_names():
    configs = {path: json.loads(path.read_text(encoding="utf-8"))["config"] for path in KEPT}
    configs = {path: config for path, config in configs.items() if not config["checkpoint"]}  # whose path was another then
    assert len(configs) > 100
    for path, config in configs.items():
        assert run_name(resolve(Run(**config), {}), processes=1) == path.parent.name


def test_a_run_is_checked_wherever_it_comes_from():
    with pytest.raises(UserError, match="--weights is 'zero'; choose pretrained, random"):
        Run(weights="zero")
    with pytest.raises(UserError, match="--batch_size is 0; it must be at least 1"):
        Run(batch_size=0)
    with pytest.raises(UserError, match="--lora_alpha is nan; it must be a finite number"):
        Run(lora_alpha=float("nan"))


# --- choosing rows


@pytest.mark.parametrize(
    "text, numbers", [("1", [1]), ("1,3-5", [1, 3, 4, 5]), (" 2 , 4-4", [2, 4]), ("10-12", [10, 11, 12])]
)
def test_parse_rows(text, numbers):
    assert parse_rows(text) == numbers


@pytest.mark.parametrize("text", ["", "x", "1,", "1-", "-1", "1..3", "1.5", "5-3"])
def test_parse_rows_refuses(text):
    with pytest.raises(UserError, match=re.escape(f"--rows is {text!r}; write numbers and ranges such as 1,3-5")):
        parse_rows(text)


def test_row_runs_the_row(prepared):
    assert find_row("7") is find_row("spam:7") is get_table("spam").row(7)
    for text in ("11", "spam:11"):
        run = prepared("--row", text)
        assert (run.trainable_layers, run.lora_rank, run.lora_alpha) == ("lora", 16, 16.0)


def test_a_model_that_is_said_takes_the_place_of_the_rows_and_of_what_belongs_to_it(prepared):
    assert get_table("spam").row(6).with_flags(Run(checkpoint="DIR")) == Run(checkpoint="DIR")
    row = get_table("distilbert-sst2").row(3)
    assert (row.with_flags(Run(seed=5)).model, row.with_flags(Run(seed=5)).head_labels) == (
        row.run.model,
        row.run.head_labels,
    )
    assert row.run.head_labels and prepared("--row", "distilbert-sst2:3").head_labels is None
    assert row.with_flags(Run(model="gpt2-pocket", head_labels="1,0")).head_labels == "1,0"


def test_a_row_on_other_data_keeps_its_method(alone):
    (alone / "here" / "own.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    table, flags = get_table("spam"), Run(model="gpt2-pocket", dataset="own.csv")
    reference, lora, mean = (choose(table, table.row(number), flags) for number in (1, 11, 19))
    assert (reference.run.trainable_layers, reference.run.trainable_token_pos) == ("last_block", "last")
    assert (lora.run.lora_rank, lora.run.lora_scaling, lora.run.lora_target) == (16, "alpha", "all")  # as in the log
    assert mean.run.average_embeddings and mean.run.trainable_token_pos is None
    assert reference.run.num_epochs is None  # which goes with the data
    assert reference.note == "own.csv isn't the log's data, so the published number says nothing about it"
    assert (reference.run.no_padding, reference.run.context_length) == (False, "longest_training_example")
    whole, unpadded = (choose(table, table.row(number), flags).run for number in (13, 14))
    assert (whole.no_padding, whole.context_length) == (False, "model_context_length") and unpadded.no_padding
    encoder = choose(table, table.row(1), Run(model="distilbert-pocket"))  # whose own default data are others too
    assert (encoder.run.trainable_layers, encoder.run.trainable_token_pos) == ("last_block", "last") and encoder.note
    adapter = choose(table, table.row(1), Run(model="gpt2-pocket", dataset="own.csv", adapter="adapter"))
    assert adapter.run.trainable_layers is None
    assert choose(table, table.row(1), Run(model="gpt2-pocket", dataset="spam-pocket")).note == ""


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--row", "20"], "the table spam has no row 20; it has 1-19"),
        (["--row", "0"], "the table spam has no row 0; it has 1-19"),
        (["--row", "ham:1"], "unknown table 'ham'; choose spam"),
        (["--row", "spam"], "--row is 'spam'; write a number, or TABLE:NUMBER with a table of spam"),
        (["--row", "²"], "--row is '²'; write a number"),
        (["--table", "ham"], "unknown table 'ham'; choose spam"),
        (["--table", "spam", "--rows", "19-20"], "the table spam has no row 20; it has 1-19"),
        (["--table", "spam", "--row", "1"], "with --table use --rows"),
        (["--rows", "1"], "--rows goes with --table"),
        (["--seeds", "2"], "--seeds goes with --table"),
    ],
)
def test_an_unknown_row_or_table_lists_the_choices(argv, message):
    with pytest.raises(UserError, match=re.escape(message)):
        experiments.main(argv)


def test_list_prints_every_row_with_a_command_that_is_the_row(capsys):
    assert experiments.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.split(maxsplit=1)[0] + ": " + line[line.index("python ") :] for line in lines if "python " in line]
    found = [line for line in found if not line.startswith("on: ")]  # on a table's own model
    assert found == [f"{row.number}: {command(row.run)}" for table in TABLES.values() for row in table.rows]
