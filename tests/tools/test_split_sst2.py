"""Sentences of SST-2 in two parts that share none."""

import pytest

from data.glue import read_sst2
from tools.split_sst2 import split
from utils.errors import UserError


def write(folder, n: int) -> None:
    (folder / "glue_sst2").mkdir(parents=True)
    rows = "".join(f"film\u2028{i} \t{i % 2}\n" for i in range(n))
    (folder / "glue_sst2/train.tsv").write_text("sentence\tlabel\n" + rows)
    (folder / "glue_sst2/dev.tsv").write_text("sentence\tlabel\nit moves \t1\n")


def test_the_parts_are_read_as_the_whole_is_and_share_no_sentence(tmp_path):
    write(tmp_path / "all", 50)
    split(tmp_path / "all", [tmp_path / "first", tmp_path / "second"], [10, 30])
    whole, first, second = (read_sst2(tmp_path / name) for name in ("all", "first", "second"))
    sizes = [len(one["train"]) for one in (first, second)]
    assert sizes == [10, 30]
    assert not set(first["train"]) & set(second["train"])
    assert set(first["train"]) | set(second["train"]) < set(whole["train"])
    assert first["validation"] == second["validation"] == whole["validation"]
    assert first["train"] != whole["train"][:10]  # drawn


@pytest.mark.parametrize("sizes", [[0, 5], [40, 11]])
def test_too_few_sentences(tmp_path, sizes):
    write(tmp_path / "all", 50)
    with pytest.raises(UserError, match="has 50 sentences"):
        split(tmp_path / "all", [tmp_path / "first", tmp_path / "second"], sizes)


@pytest.mark.parametrize("names", [("all", "second"), ("first", "first"), ("first", "second/../all")])
def test_no_directory_takes_the_place_of_another(tmp_path, names):
    write(tmp_path / "all", 50)
    (tmp_path / "second").mkdir()
    with pytest.raises(UserError, match="a directory of its own"):
        split(tmp_path / "all", [tmp_path / name for name in names], [10, 30])
    assert len(read_sst2(tmp_path / "all")["train"]) == 50


def test_no_data(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        split(tmp_path, [tmp_path / "first", tmp_path / "second"], [1, 1])
