"""The suite that holds training steps on the CPU beside the libraries'."""

from argparse import Namespace

import pytest

from benchmarks import gpu, measure, steps
from model.gpt2 import GPT2Config
from model.llama import LlamaConfig
from utils.errors import UserError

TINY = {
    "gpt2-small": GPT2Config(vocab_size=400, context_length=32, dim=64, n_heads=4, n_layers=2, dropout=0.0),
    "smollm2-135m": LlamaConfig(vocab_size=400, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, n_layers=2, mlp_dim=128),
}
WHERE = gpu.Where(measure.CPU, TINY, steps=1, shape=(2, 16))


def test_each_row_says_what_it_is():
    titles = [one.title for one in steps.ROWS.values()]
    assert len(set(titles)) == len(titles)
    assert steps.ROWS[7].theirs == ("--nf4",) and "base in nf4" in steps.ROWS[7].title


@pytest.mark.slow
@pytest.mark.parametrize("row", [2, 4, 6, 7])
def test_both_sides_begin_with_the_same_loss(row, tmp_path):
    try:
        measure.need_packages(steps.PACKAGES)
    except UserError as error:
        pytest.skip(str(error))
    (found,) = steps.comparisons([row], Namespace(amp="off"), tmp_path, WHERE)
    record = gpu.judged(measure.measure(found, 1, {}))
    assert record["agree"] and record["peer_seconds"] > 0
