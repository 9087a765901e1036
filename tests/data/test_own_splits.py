"""Which of a user's own texts are held out: as the data say, or drawn so that nothing leaks."""

import json
from collections import Counter

import pytest

from tests.helpers.own import own, refused, texts, write


def test_a_draw_has_a_tenth_of_each_class_and_equal_texts_on_one_side(tmp_path):
    rows = [[f"Text {i // 2}" if i % 2 else f"text  {i // 2}", "abc"[(i // 2) % 7 // 3]] for i in range(700)]
    found = own(write(tmp_path / "a.csv", [["text", "label"], *rows]))
    sides = {name: {" ".join(one.text.lower().split()) for one in some} for name, some in found.splits.items()}
    assert (
        not sides["train"] & sides["validation"]
        and not sides["train"] & sides["test"]
        and not sides["validation"] & sides["test"]
    )
    assert sum(map(len, found.splits.values())) == 700  # nothing is lost
    for i, label in enumerate("abc"):
        n = sum(row[1] == label for row in rows)
        for name in ("validation", "test"):
            assert Counter(one.label for one in found.splits[name])[i] == 2 * round(0.1 * n / 2)
    assert "validation and test drawn, 10% of each class each, equal texts never apart" in found.said[0]
    assert found.said[1].startswith("classes  a 240 / 30 / 30, b ")


def test_a_draw_is_the_same_whatever_the_order_of_the_rows(tmp_path):
    rows = texts(100, "a", "b")
    one, other = (own(write(tmp_path / "a.csv", [["text", "label"], *some])) for some in (rows, rows[::-1]))
    assert {name: {*some} for name, some in one.splits.items()} == {name: {*some} for name, some in other.splits.items()}


def test_a_rare_class_stays_in_training_and_is_named(tmp_path):
    found = own(
        write(
            tmp_path / "a.csv",
            [["text", "label"], *texts(40, "a", "b"), ["one", "rare"], ["three", "c"], ["four", "c"], ["five", "c"]],
        )
    )
    assert "too few texts to hold any out: rare" in found.said[0] and "rare 1 / 0 / 0" in found.said[1]
    assert "c 1 / 1 / 1" in found.said[1]
    few = write(tmp_path / "b.csv", [["text", "label"], *texts(4, "a", "b")])
    assert "no class has 3 different texts, of which one could be held out" in refused(few)


def test_a_column_says_the_splits(tmp_path):
    rows = [[f"t{i}", i % 2, ("Train", "DEV", "test", "training")[i % 4 if i > 3 else i]] for i in range(40)]
    rows = [[f"{text} {label}", (i // 4) % 2, split] for i, (text, label, split) in enumerate(rows)]
    found = own(write(tmp_path / "a.csv", [["text", "label", "split"], *rows]))
    assert {name: len(some) for name, some in found.splits.items()} == {"train": 20, "validation": 10, "test": 10}
    assert "splits by the column split" in found.said[0] and "drawn" not in found.said[0]
    two = own(
        write(
            tmp_path / "a.csv",
            [["text", "label", "split"], *([*row[:2], "test" if row[2] == "test" else "train"] for row in rows)],
        )
    )
    assert "validation drawn" in two.said[0] and len(two.splits["test"]) == 10 and len(two.splits["validation"]) == 4
    dev = own(
        write(
            tmp_path / "a.csv",
            [["text", "label", "split"], *([*row[:2], "dev" if row[2] == "test" else "train"] for row in rows)],
        )
    )
    assert [*dev.splits] == ["train", "validation"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["x", "0", "tst"], "line 42: the split is 'tst'; it must be one of train, training, validation,"),
        (["x", "0", ""], "line 42: the split is ''; it must be one of"),
        (["x", "7", "test"], "line 42: the label is '7', which no training text has"),
    ],
)
def test_a_split_that_is_none_and_a_label_that_training_lacks(tmp_path, row, said):
    rows = [[f"t{i}", i % 2, "train" if i < 30 else "test"] for i in range(40)]
    assert said in refused(write(tmp_path / "a.csv", [["text", "label", "split"], *rows, row]))


def test_no_training_text(tmp_path):
    path = write(tmp_path / "a.csv", [["text", "label", "split"], *([f"t{i}", i % 2, "test"] for i in range(40))])
    assert refused(path) == "FILE: there are texts for test and none for training"


def test_what_is_on_two_sides_is_said(tmp_path):
    rows = [[f"t{i}", i % 2, "train" if i < 30 else "test"] for i in range(40)] + [
        ["t1", "1", "test"],
        ["t2", "1", "train"],
    ]
    said = own(write(tmp_path / "a.csv", [["text", "label", "split"], *rows])).said[0]
    assert "1 of 11 test texts are training texts too" in said or "1 of 11 test texts are validation" in said
    assert "equal texts with another label: 1" in said


def test_untold_labels_of_a_test_split_are_left_out_and_said(tmp_path):
    rows = [[f"t{i}", i % 2 if i < 30 else -1, "train" if i < 30 else "test"] for i in range(40)]
    found = own(write(tmp_path / "a.csv", [["text", "label", "split"], *rows]))
    assert "no label of test is told (-1, or - as a gold_label), so it isn't measured" in found.said[
        0
    ] and found.labels == ("0", "1")


def test_texts_that_never_got_a_label_are_left_out_and_said(tmp_path):
    def lines(column: str, *labels: object) -> str:
        return "\n".join(json.dumps({"premise": f"t{i}", "hypothesis": "h", column: labels[i % 3]}) for i in range(60))

    path = tmp_path / "a.jsonl"
    for column, *labels in (("gold_label", "-", "yes", "no"), ("label", -1, "yes", "no")):
        path.write_text(lines(column, *labels))
        found = own(path)
        assert found.labels == ("no", "yes") and sum(map(len, found.splits.values())) == 40
        assert "left out: 20 texts whose label isn't told (-1, or - as a gold_label)" in found.said[0]
    for column, *labels in (("label", "-", "+", "0"), ("label", -1, 0, 1), ("gold_label", -1, 0, 1)):
        path.write_text(lines(column, *labels))  # a mark, or numbers, of which -1 is one
        assert len(own(path).labels) == 3 and "left out" not in own(path).said[0]
    path.write_text(lines("gold_label", "-", "-", "-"))
    assert refused(path) == "FILE: every label is '-1'; a classifier needs two or more"
