"""Check the flags of the data."""

import pytest

from tests.helpers.flags.register import check
from tests.helpers.small import write_messages
from utils.errors import UserError


@check("dataset")
def dataset(experiment, fixtures):
    found = experiment("--dataset", "spam-pocket", "--context_length", 8)
    assert (found.result["dataset"], found.result["data_reason"]) == ("spam-pocket", "named")
    assert "84 / 12 / 24 texts" in experiment().out and "84 / 12 / 24 texts" not in found.out


@check("data_dir")
def data_dir(experiment, fixtures):
    write_messages(fixtures["alone"] / "more" / "sms_spam" / "SMSSpamCollection", 100)
    found = experiment(data_dir=fixtures["alone"] / "more")
    assert "140 / 20 / 40 texts" in found.out and found.logged("targets", "final test") == [40]


@check("trainable_token_pos")
def trainable_token_pos(experiment, fixtures):
    losses = {experiment("--trainable_token_pos", choice).logged("loss")[0] for choice in ("first", "last", "flexible")}
    assert len(losses) == 3


@check("average_embeddings")
def average_embeddings(experiment, fixtures):
    assert experiment("--average_embeddings").logged("loss")[0] != experiment().logged("loss")[0]


@check("context_length")
def context_length(experiment, fixtures):
    assert set(experiment("--context_length", "model_context_length").widths(True)) == {256}
    assert set(experiment("--context_length", 7).widths(False)) == {7}
    longest = experiment("--context_length", "longest_training_example").widths(True)[0]
    assert 7 < longest < 256 and f"{longest} tokens each" in experiment().out  # the recipe's choice


@check("no_padding")
def no_padding(experiment, fixtures):
    assert len(set(experiment(max_steps=5).widths(True))) == 1
    found = experiment("--no_padding", max_steps=5)
    assert len(set(found.widths(True))) > 1 and any(masked for _, _, masked in found.forwards)
    alone = experiment("--no_padding", "--batch_size", 1, "--eval_batch_size", 1)
    assert not any(masked for _, _, masked in alone.forwards)


@check("ignore_index")
def ignore_index(experiment, fixtures):
    spam, ham = (experiment("--ignore_index", choice).logged("targets", "final test")[0] for choice in (0, 1))
    assert spam + ham == 24 and spam > 0 and ham > 0


@check("text_column", "pair_column", "label_column")
def columns(experiment, fixtures):
    rows = [f"{'good' if i % 2 else 'bad'} {i},see {i},{i % 2},{i % 3}" for i in range(60)]
    path = fixtures["alone"] / "own.csv"
    path.write_text("\n".join(["text,more,label,kind", *rows]) + "\n", encoding="utf-8")

    def run(*flags):
        return experiment("--dataset", path, "--num_epochs", 1, *flags, data_dir=None)

    plain = run()
    assert "text 'text', label 'label'; not read: more, kind" in plain.out and plain.result["labels"] == ["0", "1"]
    assert run("--text_column", "more").logged("loss") != plain.logged("loss")
    assert run("--label_column", "kind").result["labels"] == ["0", "1", "2"]
    paired = run("--pair_column", "more")
    assert "pair 'text' and 'more'" in paired.out and max(paired.widths(True)) > max(plain.widths(True))
    with pytest.raises(
        UserError, match=r"--label_column is 'x'; .*own\.csv has the columns 'text', 'more', 'label', 'kind'"
    ):
        run("--label_column", "x")
    with pytest.raises(UserError, match="--text_column is about a file of your own, and --dataset spam is none"):
        experiment("--text_column", "text")


@check("class_weights")
def class_weights(experiment, fixtures):
    flags = ("--train_samples", 21, "--batch_size", 21)  # 11 ham and 10 spam of this seed
    plain, weighed = (experiment(*flags, "--class_weights", choice) for choice in ("none", "balanced"))
    labels = weighed.result["train_confusion"]
    assert sum(labels[0]) != sum(labels[1]) and plain.logged("loss")[0] != weighed.logged("loss")[0]
    assert plain.logged("loss")[0] == pytest.approx(weighed.logged("loss")[0], rel=0.2)
    frozen = [experiment(*flags, "--class_weights", choice, learning_rate=0) for choice in ("none", "balanced")]
    assert frozen[0].logged("loss", "final train") == frozen[1].logged("loss", "final train")  # it weighs nothing
    with pytest.raises(UserError, match="--class_weights is about classification, and persona has no classes"):
        experiment("--dataset", "persona", "--class_weights", "balanced")


@check("train_samples")
def train_samples(experiment, fixtures):
    found = experiment("--train_samples", 10, "--num_epochs", 1, max_steps=None)
    assert found.sizes(True) == [8, 2] and "10 / 12 / 24 texts" in found.out
    assert experiment("--train_samples", 10, "--seed", 5).logged("loss") != found.logged("loss")
    with pytest.raises(UserError, match="--train_samples is 85; spam has 84 training examples"):
        experiment("--train_samples", 85)


@check("trim")
def trim(experiment, fixtures):
    assert max(experiment("--trainable_token_pos", "first").widths(training=True)) == 1
    assert max(experiment("--trainable_token_pos", "first", "--trim", "no").widths(training=True)) > 1
