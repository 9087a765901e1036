"""A flag that a run makes no use of is refused, and what each method reads is what config.py says of it."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import experiments
from config import (
    ADAPTER_PLACEMENTS,
    CLASSIFICATION,
    DEFAULTS,
    DIALOGUES,
    LORA_SCALINGS,
    METHODS,
    SETTINGS,
    Run,
    explicit,
    override,
    resolve,
)
from data.registry import TASKS, get_task
from data.spam import RECIPE
from peft.adapter import PLACEMENTS
from peft.freeze import BLOCKS
from peft.lora import SCALINGS
from peft.registry import METHODS as REGISTERED
from peft.registry import find_methods, method
from pipeline.flags import command, to_flags
from pipeline.job import prepare
from pipeline.stand_ins import choose
from pipeline.unused import completed, refuse_unused, why_unused, without_unused
from published import TABLES, get_table
from published.plans import PLANS
from tests.helpers.paths import ROOT
from utils.errors import UserError

SHARED_BY_ALL = {"trainable_layers", "train_head"}


class Recorder:
    """A run that notes which of its settings are read."""

    def __init__(self, run: Run):
        self.run, self.names = run, set()

    def __getattr__(self, name: str):
        self.names.add(name)
        return getattr(self.run, name)


# --- the facts


def test_the_methods_are_those_that_are_registered():
    find_methods()
    assert set(METHODS) == {name for name, cls in REGISTERED.items() if cls.__module__.startswith("peft.")}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_the_settings_that_say_so(name):
    find_methods()
    recorder = Recorder(resolve(Run(trainable_layers=name, adapter="some"), RECIPE))
    REGISTERED[name].from_run(name, recorder)
    says_so = {setting for setting, about in SETTINGS.items() if name in about["methods"]}
    says_so -= {"base_precision"}  # of whatever a method leaves frozen; the model itself reads it
    assert recorder.names - SHARED_BY_ALL == says_so


def test_each_choice_of_a_method_means_something():
    assert SCALINGS.keys() == {*LORA_SCALINGS} and PLACEMENTS.keys() == {*ADAPTER_PLACEMENTS}
    assert {*BLOCKS} <= {*METHODS}


def test_every_method_and_task_that_a_setting_names_is_there():
    for about in SETTINGS.values():
        assert set(about["methods"]) <= set(METHODS) and about["task"] in ("", CLASSIFICATION, DIALOGUES)


# --- one run

REFUSED = {
    "--trainable_layers last_layer --lora_rank 4": (
        "--lora_rank is not used by --trainable_layers last_layer; it belongs to lora, lora_alternative, dora"
    ),
    "--lora_alpha 4": "--lora_alpha is not used by --trainable_layers last_block; it belongs to lora, lora_alternative",
    "--trainable_layers ia3 --lora_plus_ratio 2": "it belongs to lora, lora_alternative, dora, peft",
    "--trainable_layers vera --lora_rank 4": "it belongs to lora, lora_alternative, dora, hira",
    "--trainable_layers lora --vera_rank 4": "it belongs to vera",
    "--trainable_layers hira --vera_seed 0": "it belongs to vera",
    "--trainable_layers lora --adapter_placement houlsby": "it belongs to adapter",
    "--trainable_layers bitfit --reduction_factor 16": "it belongs to adapter",  # its default, but given
    "--trainable_layers lora+bypass --prefix_length 3": "--trainable_layers lora+bypass; it belongs to prefix, prompt",
    "--trainable_layers prompt --prefix_projection": "it belongs to prefix",
    "--trainable_layers prompt --no-prefix_projection": "it belongs to prefix",
    "--trainable_layers prompt --layers 0": "it belongs to freeze, lora, lora_alternative, dora, vera, hira",
    "--trainable_layers lora --part mlp": "it belongs to freeze",
    **{
        f"--trainable_layers prefix --{name} {value}": f"--{name} is not used by --trainable_layers prefix; it belongs"
        for name, value in {"bypass_taps": 1, "bypass_depth": 1, "bypass_into": "dense", "bypass_head": "own"}.items()
    },
    "--template default": "--template is about dialogues, and spam has none",
    "--packing": "--packing is about dialogues, and spam has none",
    "--no-packing": "--packing is about dialogues, and spam has none",
    "--stages layer_by_layer --trainable_layers freeze --lora_rank 4": (
        "--lora_rank is not used by --stages layer_by_layer; it belongs to lora, lora_alternative, dora"
    ),
    "--stages layer_by_layer --trainable_layers lora": (
        "--trainable_layers is not used by --stages layer_by_layer, which sets it for each stage"
    ),
    "--stages layer_by_layer --layers 1": "--layers is not used by --stages layer_by_layer, which sets it for each stage",
    "--stages 10_rounds --num_epochs 3": "--num_epochs is not used by --stages 10_rounds, which sets it for each stage",
    "--row 3 --lora_rank 4": "--lora_rank is not used by --trainable_layers last_layer",
    "--dataset persona --ignore_index 50256": "--ignore_index is about classification, and persona has no classes",
    "--dataset persona --ignore_index -100": "--ignore_index is about classification, and persona has no classes",
    "--dataset persona --trim no": "--trim is about classification, and persona has no classes",
    "--dataset persona --trainable_token_pos first": "is about classification, and persona has no classes",
    "--dataset persona --trainable_layers lora --train_head no": "--train_head is about classification; on dialogues lora",
    "--trainable_layers lora --lora_alpha 0": "--lora_alpha is 0, which multiplies all that LoRA learns by 0",
}


@pytest.mark.parametrize("flags, what", REFUSED.items(), ids=REFUSED)
def test_a_flag_without_a_use_is_refused(flags, what, alone, small_checkpoint, small_data):
    words = ["--checkpoint", str(small_checkpoint), "--data_dir", str(small_data), "--output_dir", "out", *flags.split()]
    with pytest.raises(UserError, match=re.escape(what)) as found:
        experiments.main(words)
    assert "\n" not in str(found.value) and not (alone / "here" / "out").exists()


ACCEPTED = [
    "--ignore_index 50256",
    "--trainable_layers lora+bypass --lora_rank 4 --bypass_depth 2 --layers 0",
    "--trainable_layers mine --lora_rank 4 --bypass_depth 2 --prefix_length 3",  # which may read anything
    "--trainable_layers lora+mine --reduction_factor 4",
    "--adapter DIR --lora_plus_ratio 2",
    "--stages layer_by_layer_then_lora --lora_rank 4 --train_head no --num_epochs 3 --depth 2",
    "--stages 10_rounds --trainable_layers lora --lora_rank 4",
    "--stages no_such_plan --lora_rank 4",  # the plan is what is wrong
    "--dataset persona --lora_rank 4 --packing --template alpaca",
]


def judge(run: Run) -> None:
    refuse_unused(run, *completed(run))


@pytest.mark.parametrize("flags", ACCEPTED)
def test_a_flag_with_a_use_is_accepted(flags):
    judge(experiments.parse(flags.split())[0])


ROWS = [pytest.param(row, id=f"{table.name}-{row.number}") for table in TABLES.values() for row in table.rows]


@pytest.mark.parametrize("row", ROWS)
def test_every_published_command_is_accepted(row):
    judge(row.run)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TYPED = re.compile(r"python experiments\.py([^\n`|&#]*)")
COMMANDS = sorted({line.strip() for page in PAGES for line in TYPED.findall(page.read_text()) if "--help" not in line})


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_of_the_pages_is_accepted(text):
    overrides, options = experiments.parse(shlex.split(text, comments=True))
    if overrides.checkpoint or "/" in (overrides.model or ""):  # which needn't be here
        overrides = replace(overrides, checkpoint=None, model="distilbert-pocket")
    if overrides.dataset not in TASKS:  # a reader's own
        kinds = {".json": "persona", ".csv": "sentiment-pocket", ".tsv": "sentiment-pocket", ".jsonl": "sentiment-pocket"}
        kind = "preferences" if overrides.objective == "dpo" else kinds.get(Path(overrides.dataset or "").suffix)
        overrides = replace(overrides, dataset=kind)
    if "row" in options:
        run = experiments.find_row(options["row"]).with_flags(overrides)
        refuse_unused(overrides, *completed(run))
    elif not options.keys() - {"run_dir"}:
        judge(overrides)


# --- tables


def test_what_each_row_of_a_table_is_run_with_is_accepted_when_it_is_typed(alone, small_data):
    overrides = Run(lora_rank=4, lora_alpha=2, num_epochs=1, data_dir=str(small_data))
    for name in ("spam", "distilbert-sst2"):
        table = get_table(name)
        for row in table.rows:
            given = override(overrides, Run(dataset="spam-pocket", model="gpt2-pocket"))
            run = without_unused(row.with_flags(given), given)
            judge(run)
            assert (run.lora_rank == 4) is ("lora" in f"{run.trainable_layers} {run.stages}")
            job = prepare(run)
            recorded = to_flags(without_unused(job.run, job.run))
            typed, _ = experiments.parse(recorded)
            again = prepare(typed)
            assert again.run == job.run
            refuse_unused(typed, again.run, again.task)


def test_a_flag_that_one_row_uses_is_taken_and_given_to_no_other(alone, small_checkpoint, small_data):
    flags = {"checkpoint": small_checkpoint, "data_dir": small_data, "max_steps": 1, "eval_train": "no", "amp": "off"}
    flags |= {"device": "cpu", "output_dir": "out", "lora_rank": 3}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    with pytest.raises(
        UserError, match=r"--lora_rank is not used by --trainable_layers last_block; .*; no other row that was"
    ):
        experiments.main(["--table", "spam", "--rows", "1,3", *words])
    assert not (alone / "here" / "out").exists()
    assert experiments.main(["--table", "spam", "--rows", "3,11", *words]) == 0
    head, lora = (choose(get_table("spam"), get_table("spam").row(n), Run(lora_rank=3)).run for n in (3, 11))
    assert (head.lora_rank, lora.lora_rank) == (None, 3)
    assert "--lora_rank" not in command(head) and "--lora_rank 3" in command(lora)


# --- the plans


def test_a_plan_sets_the_same_settings_for_any_number_of_blocks():
    for plan in PLANS.values():
        names = [{name for stage in plan(n) for name in explicit(stage)} for n in (2, 3, 12)]
        assert names[0] == names[1] == names[2]


def test_a_method_of_a_users_own_is_never_judged():
    run = resolve(Run(trainable_layers="own"), RECIPE)
    try:
        method("own")(type("Own", (), {}))
        assert not any(why_unused(name, run, get_task("spam")) for name, about in SETTINGS.items() if about["methods"])
    finally:
        REGISTERED.pop("own")


def test_settings_that_every_run_reads_are_never_refused():
    for name in ("last_layer", "lora", "prompt"):
        run = replace(resolve(Run(trainable_layers=name), RECIPE))
        for setting, about in SETTINGS.items():
            if not about["methods"] and not about["task"]:
                assert why_unused(setting, run, get_task("spam")) == ""
    assert DEFAULTS["layers"] == "all"
