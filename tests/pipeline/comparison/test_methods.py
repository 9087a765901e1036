"""The list of methods: complete, and each line is one of its own."""

from dataclasses import replace

from config import explicit
from peft.registry import find_methods
from pipeline.comparison.methods import ENTRIES, REFERENCE, UNTRAINED
from pipeline.comparison.records import slug

COVERED = {"lora_alternative", "last_two_blocks", "peft"}  # the first computes what LoRA does; the last is read from a file


def test_every_method_is_in_the_list():
    listed = {name for entry in ENTRIES for name in entry.run.trainable_layers.split("+")}
    shipped = {
        name for name, kind in find_methods().items() if kind.__module__.startswith("peft.")
    }  # tests register others
    assert shipped - listed == COVERED
    assert REFERENCE in ENTRIES and UNTRAINED not in ENTRIES


def test_each_line_is_one_of_its_own():
    assert len({slug(entry.title) for entry in ENTRIES}) == len(ENTRIES)
    assert len({str(explicit(entry.run)) for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert len(entry.rates) == 4 and [*entry.rates] == sorted({*entry.rates}), entry.title
        assert replace(entry.run, learning_rate=None, seed=None) == entry.run  # the table says these
