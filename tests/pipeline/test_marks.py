"""The marks of the chat table's plot tell method, weights, layers and auxiliary data apart."""

from itertools import product

import pytest

from config import explicit
from pipeline import plots
from pipeline.marks import COLOURS, MORE_COLOURS, MORE_SHAPES, SHAPES, UNTRAINED, Mark, colours_of, mark_of, shapes_of
from published import get_table

ROWS = get_table("chat").rows


def test_the_rows_of_the_plan_look_different():
    marks = [mark_of(explicit(row.run)) for row in ROWS[:22]]
    shapes, colours = shapes_of(marks), colours_of(marks)
    assert (shapes, colours) == (SHAPES, COLOURS)
    assert len({str(plots.style_of(mark, shapes, colours)) for mark in marks}) == 22
    for mark, row in zip(marks, ROWS, strict=False):
        words = row.title.replace("P-Tuning, prefix_encoder", "prefix").replace("query_key_value", "qkv").split(", ")
        words = [word for word in words if word != "auxiliary"]
        layers = words.pop() if words[-1] in COLOURS else "all"
        assert mark == Mark(" ".join(words).lower(), layers, "auxiliary" in row.title)


def test_every_mark_can_be_drawn_and_none_twice():
    assert {*SHAPES.values(), *MORE_SHAPES} == plots.MARKERS.keys() and len({*plots.MARKERS.values()}) == len(plots.MARKERS)
    assert {*COLOURS.values(), *MORE_COLOURS} == plots.PALETTE.keys()
    assert len({*plots.PALETTE.values()}) == len(plots.PALETTE)


def test_auxiliary_data_fill_a_mark():
    shapes, colours = {"prefix": "cross"}, {"all": "green"}
    filled, hollow = (plots.style_of(Mark("prefix", "all", auxiliary), shapes, colours) for auxiliary in (True, False))
    assert filled["markerfacecolor"] == filled["markeredgecolor"] == hollow["markeredgecolor"]
    assert hollow["markerfacecolor"] == "none"


def test_what_is_not_in_the_table_gets_a_mark_of_its_own():
    marks = [Mark(method, layers, False) for method, layers in product(("dora", "lora mlp", "bitfit"), ("0,2", "all"))]
    assert shapes_of(marks) == {"lora mlp": "circle", "dora": "hexagon", "bitfit": "wedge"}
    assert colours_of(marks) == {"all": "green", "0,2": "purple"}
    many = shapes_of(Mark(f"own{number}", "all", False) for number in range(5))
    assert [*many.values()] == [*MORE_SHAPES, MORE_SHAPES[-1], MORE_SHAPES[-1]]


@pytest.mark.parametrize("settings", [{}, {"trainable_layers": None}, {"trainable_layers": ["x"], "layers": 3}])
def test_settings_that_are_missing_or_odd(settings):
    assert isinstance(mark_of(settings), Mark)


def test_a_run_without_training_is_a_star():
    assert (
        plots.style_of(mark_of({"num_epochs": 0}), {}, {})["marker"] == "*"
        and mark_of({"num_epochs": 0}).method == UNTRAINED
    )
