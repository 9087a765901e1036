"""Every flag changes what it says. One check per field of `Run`; a field without one fails the last test."""

import math
import os
import re
import signal
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file

import model as models
import train
from config import Run
from model import fast_path, hub
from model.weights import save_pretrained
from tests.helpers import chat_checks
from tests.helpers.methods import DenseHead
from tests.helpers.small import make_checkpoint, write_messages
from training.checkpoints import Checkpointer
from training.meter import Meter
from utils.errors import UserError

CHECKS = dict(chat_checks.CHECKS)
LORA = ("--trainable_layers", "lora", "--lora_rank", 4)


def check(*names):
    """Registers a check (of the fixture `experiment`, and of `fixtures`, which holds what few of them need)."""

    def register(function):
        CHECKS.update(dict.fromkeys(names, function))
        return function

    return register


@pytest.fixture
def fixtures(alone, small_checkpoint, small_data, monkeypatch):
    saved, save = [], Checkpointer.save

    def spy(self, *parts, required):
        saved.append(parts[-1].step)
        save(self, *parts, required)

    monkeypatch.setattr(Checkpointer, "save", spy)
    found = {"alone": alone, "checkpoint": small_checkpoint, "data": small_data, "monkeypatch": monkeypatch}
    return found | {"save_state": saved}


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


# --- the model


@check("model")
def model(experiment, fixtures):
    fixtures["monkeypatch"].setattr(hub, "POCKET_DIR", fixtures["checkpoint"].parent)
    found = experiment(checkpoint=None, model="tiny")
    assert found.result["model"] == "tiny" and found.result["model_reason"] == "named"
    assert not differ(found.tensors, experiment().tensors)  # the same files by another way


@check("checkpoint")
def checkpoint(experiment, fixtures):
    other = make_checkpoint(fixtures["alone"] / "deeper", "see you later " * 9, n_layers=3)
    found = experiment(checkpoint=other)
    assert (found.result["model"], found.result["model_reason"]) == (str(other), "named with --checkpoint")
    assert "blocks.2.attn.q.weight" in found.tensors and "blocks.2.attn.q.weight" not in experiment().tensors


@check("tokenizer")
def tokenizer(experiment, fixtures):
    coarse = make_checkpoint(fixtures["alone"] / "coarse", "text", n_merges=1)  # hardly a merge: more tokens
    assert experiment("--tokenizer", coarse).widths(True)[0] > 1.5 * experiment().widths(True)[0]


@check("weights")
def weights(experiment, fixtures):
    stored = load_file(fixtures["checkpoint"] / "model.safetensors")["transformer.wte.weight"]
    flags = ("--trainable_layers", "all", "--weights")
    pretrained, random = (experiment(*flags, choice, learning_rate=0) for choice in ("pretrained", "random"))
    assert torch.equal(pretrained.tensors["token_embedding.weight"], stored)
    assert (random.tensors["token_embedding.weight"] - stored).std() > 1  # two draws of N(0, 1)
    assert (pretrained.result["weights"], random.result["weights"]) == ("pretrained", "random")


@check("disable_causal_mask")
def disable_causal_mask(experiment, fixtures):
    # The first token sees the others only without the mask.
    flags = ("--trainable_token_pos", "first", "--context_length", 8)
    causal, free = experiment(*flags), experiment(*flags, "--disable_causal_mask")
    assert causal.logged("loss")[0] != free.logged("loss")[0]


@check("dropout")
def dropout(experiment, fixtures):
    without, with_dropout = experiment(learning_rate=0), experiment("--dropout", 0.5, learning_rate=0)
    assert without.logged("loss") != with_dropout.logged("loss")
    assert without.logged("loss", "validation") == with_dropout.logged("loss", "validation")  # only in training


# --- what is trained


@check("adapter")
def adapter_of_the_library(experiment, fixtures):
    folder, path = fixtures["alone"] / "adapter", "base_model.model.transformer.h.0.attn.c_attn"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 3}')
    a, b = torch.randn(3, 32), torch.randn(96, 3)
    save_file({f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    found = experiment(adapter=folder, learning_rate=0)
    assert len(found.result["adapter_sha256"]) == 64
    assert found.result["method"] == "peft"
    assert torch.equal(found.tensors["blocks.0.attn.k.lora_a"], a)
    assert torch.equal(found.tensors["blocks.0.attn.k.lora_b"], b[32:64])


@check("trainable_layers")
def trainable_layers(experiment, fixtures):
    block = 12 * 32 * 32 + 13 * 32  # four D x D and two D x 4D matrices, their biases, two norms
    head, norm = 2 * 32 + 2, 2 * 32
    counts = {"last_layer": head, "last_block": head + norm + block, "last_two_blocks": head + norm + 2 * block}
    counts["lora"] = counts["lora_alternative"] = head + 2 * 8 * (4 * 64 + 2 * 160) + 8 * 34  # rank 8 on every Linear
    biases = head - 2 * 32 + 32 + 2 * 11 * 32
    adapters = 2 * (2 * 2 * 32 + 2 + 32)
    counts |= {"freeze": head + 2 * block, "bitfit": biases + 2 * 32, "adapter": head + adapters, "bypass": head + 33 * 32}
    counts |= {"prefix": head + 2 * 2 * 16 * 32, "prompt": head + 16 * 32, "ia3": head + 2 * (32 + 32 + 128)}
    counts["dora"] = counts["lora"] + 2 * (5 * 32 + 128) + 2  # and a magnitude per output
    counts["adapter+bypass"] = head + adapters + 33 * 32
    for choice, expected in counts.items():
        found = experiment("--trainable_layers", choice)
        assert found.result["trainable_parameters"] == sum(t.numel() for t in found.tensors.values()) == expected
        assert found.result["method"] == choice
    assert "the LoRA product is multiplied by 8\n" in experiment("--trainable_layers", "lora+bypass").out
    everything = experiment("--trainable_layers", "all").result
    assert everything["trainable_parameters"] == everything["total_parameters"] > counts["last_two_blocks"]


@check("train_head")
def train_head(experiment, fixtures):
    with_head, without = experiment("--train_head", "yes"), experiment("--train_head", "no")
    head = {"head.classifier.weight", "head.classifier.bias"}
    assert with_head.tensors.keys() - without.tensors.keys() == head


@check("lora_rank")
def lora_rank(experiment, fixtures):
    for rank in (2, 5):
        shapes = {tuple(t.shape) for name, t in experiment(*LORA, "--lora_rank", rank).tensors.items() if "lora_a" in name}
        assert shapes == {(rank, 32), (rank, 128)}


@check("lora_alpha", "lora_scaling")
def lora_alpha(experiment, fixtures):
    # The product starts at zero, so the first loss can't depend on its factor, and the second must.
    seen = []
    factors = ((2, "alpha", "2"), (2, "alpha/r", "0.5"), (8, "alpha/r", "2"), (8, "alpha", "8"), (4, "alpha/sqrt(r)", "2"))
    for alpha, scaling, scale in factors:
        found = experiment(*LORA, "--lora_alpha", alpha, "--lora_scaling", scaling)
        assert f"the LoRA product is multiplied by {scale}\n" in found.out
        seen.append(found.logged("loss"))
    assert len({first for first, _ in seen}) == 1
    assert seen[0] == seen[2] == seen[4] and len({second for _, second in seen}) == 3


@check("lora_target")
def lora_target(experiment, fixtures):
    found = experiment(*LORA, "--lora_target", "attn.q,1.mlp.up").tensors
    adapted = {name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")}
    assert adapted == {"blocks.0.attn.q", "blocks.1.attn.q", "blocks.1.mlp.up"}
    with pytest.raises(UserError, match=r"the target 'attn.x' matches no Linear layer: choose all, attn.k, attn.out"):
        experiment(*LORA, "--lora_target", "attn.x")


@check("lora_dropout")
def lora_dropout(experiment, fixtures):
    without, with_dropout = experiment(*LORA), experiment(*LORA, "--lora_dropout", 0.5)
    assert without.logged("loss")[0] == with_dropout.logged("loss")[0]  # while the product is zero
    assert without.logged("loss")[1] != with_dropout.logged("loss")[1]


@check("lora_init")
def lora_init(experiment, fixtures):
    for choice, bound in (("kaiming", 1 / math.sqrt(32)), ("wide", 1 / math.sqrt(4))):
        found = experiment(*LORA, "--lora_init", choice, "--lora_target", "attn.q", learning_rate=0)
        assert 0.9 * bound < found.tensors["blocks.0.attn.q.lora_a"].abs().max() <= bound
    found = experiment(*LORA, "--lora_init", "pissa", "--lora_target", "attn.q", learning_rate=0).tensors
    weight = load_file(fixtures["checkpoint"] / "model.safetensors")["transformer.h.0.attn.c_attn.weight"][:, :32].T
    product = found["blocks.0.attn.q.lora_b"] @ found["blocks.0.attn.q.lora_a"] * 8  # alpha 8, --lora_scaling alpha
    kept, rest = (torch.linalg.svdvals(one)[:5] for one in (product, weight - product))
    expected = torch.linalg.svdvals(weight)
    torch.testing.assert_close(kept[:4], expected[:4], rtol=1e-4, atol=1e-5)  # rank 4: its largest
    torch.testing.assert_close(rest, expected[4:9], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--lora_init pissa needs --lora_alpha above 0; it is -1"):
        experiment(*LORA, "--lora_init", "pissa", "--lora_alpha", -1)


@check("lora_plus_ratio")
def lora_plus_ratio(experiment, fixtures):
    # B starts at 0, and AdamW's first step is by the learning rate in each component.
    def moved(*flags):
        return experiment(*LORA, "--max_steps", 1, *flags).tensors["blocks.0.attn.q.lora_b"].abs().median()

    torch.testing.assert_close(moved("--lora_plus_ratio", 16) / moved(), torch.tensor(16.0), rtol=0.05, atol=0)
    with pytest.raises(UserError, match="--lora_plus_ratio is 0; it must be above 0"):
        experiment(*LORA, "--lora_plus_ratio", 0)


@check("layers", "part")
def layers(experiment, fixtures):
    def blocks(*flags):
        return {name.removeprefix("blocks.") for name in experiment("--train_head", "no", *flags).tensors}

    freeze = ("--trainable_layers", "freeze")
    assert {name[0] for name in blocks(*freeze)} == {"0", "1"}
    assert {name[0] for name in blocks(*freeze, "--layers", "first1")} == {"0"}
    norms = {f"1.{part}_norm.{kind}" for part in ("attn", "mlp") for kind in ("weight", "bias")}
    assert blocks(*freeze, "--layers", "1", "--part", "norm") == norms
    assert blocks(*LORA, "--lora_target", "attn.q", "--layers", "last1") == {"1.attn.q.lora_a", "1.attn.q.lora_b"}
    assert {name[:14] for name in blocks("--trainable_layers", "adapter", "--layers", "0")} == {"0.mlp.down.ada"}
    with pytest.raises(UserError, match="--layers '0,2': 2 isn't there; the model has blocks 0-1; choose all, first3"):
        experiment(*freeze, "--layers", "0,2")
    with pytest.raises(UserError, match=r"the target 'attention' matches no part of a block: choose all, attn, attn\.k"):
        experiment(*freeze, "--part", "attention")


@check("adapter_placement", "reduction_factor")
def adapter(experiment, fixtures):
    def added(*flags):
        found = experiment("--trainable_layers", "adapter", *flags).tensors
        return {name.split(".adapter")[0]: t.shape[0] for name, t in found.items() if name.endswith("down.weight")}

    assert added() == {"blocks.0.mlp.down": 2, "blocks.1.mlp.down": 2}
    assert added("--reduction_factor", 4) == {"blocks.0.mlp.down": 8, "blocks.1.mlp.down": 8}
    houlsby = added("--adapter_placement", "houlsby").keys()
    assert houlsby == {f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.out", "mlp.down")}
    with pytest.raises(UserError, match="--reduction_factor is 33; it must be at most the model's width, 32"):
        added("--reduction_factor", 33)
    with pytest.raises(UserError, match="--adapter_placement is 'both'; choose pfeiffer, houlsby"):
        added("--adapter_placement", "both")


@check("prefix_length", "prefix_projection")
def prefix_length(experiment, fixtures):
    for name in ("prefix", "prompt"):
        for length in (2, 5):
            found = experiment("--trainable_layers", name, "--train_head", "no", "--prefix_length", length).tensors
            assert {tensor.shape[-2:] for tensor in found.values()} == {(length, 32)}
    flags = ("--trainable_layers", "prefix", "--prefix_length", 2)
    plain, projected = experiment(*flags), experiment(*flags, "--prefix_projection")
    assert plain.result["trainable_parameters"] < projected.result["trainable_parameters"]
    assert plain.tensors.keys() == projected.tensors.keys() and differ(plain.tensors, projected.tensors)


@check("bypass_taps", "bypass_depth", "bypass_init")
def bypass(experiment, fixtures):
    def branches(*flags):
        found = experiment("--trainable_layers", "bypass", "--train_head", "no", *flags, learning_rate=0).tensors
        return {name.removeprefix("head.branches."): bool(t.any()) for name, t in found.items() if "weight" in name}

    assert branches() == {"h_1.0.weight": False}
    assert branches("--bypass_taps", "1,attn.2") == {"h_1.0.weight": False, "attn_2.0.weight": False}
    assert branches("--bypass_depth", 2) == {"h_1.0.weight": True, "h_1.1.weight": False}
    assert branches("--bypass_init", "default") == {"h_1.0.weight": True}
    with pytest.raises(UserError, match=r"--bypass_taps is '1,attn\.3'; 'attn\.3' isn't there; choose all, or blocks"):
        branches("--bypass_taps", "1,attn.3")
    assert branches("--bypass_taps", "1x3") == dict.fromkeys(("h_1.0.weight", "h_1.1.weight"), True) | {
        "h_1.2.weight": False
    }
    with pytest.raises(UserError, match="--bypass_depth 0 adds what is tapped as it is, from the start: say --bypass_init"):
        branches("--bypass_depth", 0)
    for flag, wrong, limit in (
        ("depth", 4, "below 4"),
        ("depth", -1, "at least 0"),
        ("init", "one", "choose zero, default"),
    ):
        with pytest.raises(UserError, match=f"--bypass_{flag} is .*{limit}"):
            branches(f"--bypass_{flag}", wrong)
    with pytest.raises(UserError, match="bypass needs a classifier that reads one position, so no --average_embeddings"):
        branches("--average_embeddings")


@check("bypass_into", "bypass_head")
def bypass_head(experiment, fixtures):
    fixtures["monkeypatch"].setattr("model.registry.ClassifierHead", DenseHead)  # the two only differ where there is one
    losses = {
        (into, form): experiment(
            *("--trainable_layers", "bypass", "--bypass_init", "default", "--bypass_into", into, "--bypass_head", form)
        ).logged("loss", "final test")[0]
        for into in ("classifier", "dense")
        for form in ("own", "linear")
    }
    assert len(set(losses.values())) == 4
    for flag, choices in (("into", "classifier, dense"), ("head", "own, linear")):
        with pytest.raises(UserError, match=f"--bypass_{flag} is 'top'; choose {choices}"):
            experiment(f"--bypass_{flag}", "top")


# --- the data


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


# --- the loop


@check("num_epochs", "max_steps", "batch_size", "accumulation_steps")
def how_many_steps(experiment, fixtures):
    # 84 examples: 11 batches of 8 (the last has 4), 6 windows of two.
    assert experiment(max_steps=0, num_epochs=1).result["steps"] == 11
    assert experiment(max_steps=0, num_epochs=2).result["steps"] == 22
    assert experiment(max_steps=13, num_epochs=2).result["steps"] == 13
    wider = experiment("--batch_size", 30, max_steps=0, num_epochs=1)
    assert wider.result["steps"] == 3 and wider.sizes(True) == [30, 30, 24]
    accumulated = experiment("--accumulation_steps", 2, max_steps=0, num_epochs=1)
    assert accumulated.result["steps"] == 6 and accumulated.sizes(True) == [8] * 10 + [4]


@check("eval_batch_size")
def eval_batch_size(experiment, fixtures):
    assert max(experiment().sizes(False)) == 64
    assert experiment("--eval_batch_size", 10).sizes(False)[-3:] == [10, 10, 4]  # the test set


@check("learning_rate")
def learning_rate(experiment, fixtures):
    assert experiment(learning_rate=2e-4).logged("learning_rate") == [2e-4, 2e-4]
    before, slow, fast = (experiment(learning_rate=rate).tensors["head.classifier.weight"] for rate in (0, 1e-4, 1e-2))
    assert (slow - before).abs().max() == pytest.approx(2e-4, rel=0.3)  # two steps of Adam, each about the rate long
    assert (fast - before).abs().max() == pytest.approx(2e-2, rel=0.3)


@check("weight_decay")
def weight_decay(experiment, fixtures):
    without, decayed = (experiment("--weight_decay", value, max_steps=1).tensors for value in (0, 100))
    start = experiment(max_steps=1, learning_rate=0).tensors
    for name in start:  # everything decays, norms and biases too: by rate x decay = 0.1 in a step
        torch.testing.assert_close(decayed[name], without[name] - 0.1 * start[name], rtol=0, atol=1e-6)


@check("lr_scheduler_type", "warmup_ratio")
def schedule(experiment, fixtures):
    def rates(*flags):
        return experiment(*flags, max_steps=4, learning_rate=1).logged("learning_rate")

    assert rates("--lr_scheduler_type", "constant") == [1, 1, 1, 1]
    assert rates("--lr_scheduler_type", "linear") == [1, 0.75, 0.5, 0.25]
    assert rates("--lr_scheduler_type", "cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], rel=1e-5)
    assert rates("--warmup_ratio", 0.5) == [0, 0.5, 1, 1]


@check("max_grad_norm")
def max_grad_norm(experiment, fixtures):
    start = experiment(learning_rate=0).tensors["head.classifier.weight"]
    free, clipped = (
        experiment("--max_grad_norm", bound, "--weight_decay", 0).tensors["head.classifier.weight"] for bound in (0, 1e-10)
    )
    assert (clipped - start).abs().max() < 0.1 * (free - start).abs().max()  # far below Adam's epsilon of 1e-8


@check("seed")
def seed(experiment, fixtures):
    heads = [experiment("--seed", value, learning_rate=0).tensors["head.classifier.weight"] for value in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@check("data_order")
def data_order(experiment, fixtures):
    assert experiment("--data_order", "seeded", max_steps=0, num_epochs=1).sizes(True) == [8] * 10 + [4]
    assert experiment("--data_order", "published", max_steps=0, num_epochs=1).sizes(True) == [8] * 10  # drops the last


# --- the machine and the record


@check("amp")
def amp(experiment, fixtures):
    full, half = experiment(amp="off"), experiment(amp="bf16")
    assert (full.result["amp"], half.result["amp"]) == ("off", "bf16")
    assert full.logged("loss") != half.logged("loss") == pytest.approx(full.logged("loss"), rel=0.05)
    with pytest.raises(UserError, match="--amp fp16 needs a GPU"):
        experiment(amp="fp16")


@check("device")
def device(experiment, fixtures):
    fixtures["monkeypatch"].setattr(torch.cuda, "is_available", lambda: False)
    assert experiment(device="cpu").result["device"].startswith("cpu (")
    with pytest.raises(UserError, match="--device cuda isn't available here; choose auto,"):
        experiment(device="cuda")


@check("logging_steps")
def logging_steps(experiment, fixtures):
    assert experiment(logging_steps=3, max_steps=7).logged("step") == [3, 6, 7]


@check("eval_steps")
def eval_steps(experiment, fixtures):
    assert experiment(max_steps=7).logged("step", "validation") == [7]
    assert experiment("--eval_steps", 3, max_steps=7).logged("step", "validation") == [3, 6, 7]


@check("output_dir")
def output_dir(experiment, fixtures):
    folder = fixtures["alone"] / "some" / "where"
    assert experiment(output_dir=folder).directory == folder
    assert {path.name for path in folder.iterdir()} == {"result.json", "metrics.jsonl", "trained.safetensors"}
    # Without it the configuration names the directory: another one for another configuration, never for the same.
    plain, same, other = experiment(output_dir=None), experiment(output_dir=None), experiment("--seed", 7, output_dir=None)
    assert re.fullmatch(r"runs/spam-tiny-last_block-seed123-[0-9a-f]{8}", str(plain.directory))
    assert plain.directory == same.directory != other.directory


@check("resume")
def resume(experiment, fixtures):
    whole = experiment("--dropout", 0.1, max_steps=5)
    score, calls = fast_path.loss, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return score(*args)

    fixtures["monkeypatch"].setattr(fast_path, "loss", interrupted)
    half = experiment("--dropout", 0.1, max_steps=5)
    assert (half.code, half.result["interrupted"], half.result["steps"]) == (130, True, 3)
    assert half.result["test_accuracy"] is None and "--resume goes on from there" in half.out
    rest = experiment("--dropout", 0.1, "--resume", max_steps=5)
    assert (rest.code, rest.result["interrupted"], rest.result["steps"]) == (0, False, 5)
    assert rest.logged("step") == [1, 2, 3, 4, 5] and rest.logged("loss") == whole.logged("loss")
    assert not differ(rest.tensors, whole.tensors)
    assert not (rest.directory / "states").exists()


@check("save_total_limit")
def save_total_limit(experiment, fixtures):
    left, step = [], Meter.step

    def look(meter, number, *given, **named):
        left.append(sorted(path.name for path in (fixtures["alone"] / "out").glob("states/*")))
        return step(meter, number, *given, **named)

    fixtures["monkeypatch"].setattr(Meter, "step", look)
    experiment("--save_steps", 1, "--save_total_limit", 2, max_steps=4)
    assert left[-1] == ["step-000002.safetensors", "step-000003.safetensors"]
    experiment("--save_steps", 1, max_steps=4)
    assert left[-1] == ["step-000003.safetensors"]
    with pytest.raises(UserError, match="--save_total_limit is 0; it must be at least 1"):
        experiment("--save_total_limit", 0)


@check("deterministic")
def deterministic(experiment, fixtures):
    seen = []
    fixtures["monkeypatch"].setattr(train, "update", lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    experiment("--deterministic")
    experiment()
    assert seen == [True, True, False, False] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@check("head_labels")
def head_labels(experiment, fixtures):
    folder = make_checkpoint(fixtures["alone"] / "three", "see you later " * 9)
    three = models.from_pretrained(folder, "classifier", 3)
    save_pretrained(three, folder)
    found = experiment("--head_labels", "2,0", checkpoint=folder, learning_rate=0, weight_decay=0)
    assert torch.equal(found.tensors["head.classifier.weight"], three.head.classifier.weight[[2, 0]])
    with pytest.raises(UserError, match=r"has a classifier for 3 labels, but num_labels says 2"):
        experiment(checkpoint=folder)


@check("stages")
def stages(experiment, fixtures):
    assert len(experiment("--stages", "layer_by_layer").result["stages"]) == 2
    assert len(experiment().result["stages"]) == 1


@check("depth")
def depth(experiment, fixtures):
    assert not any(name.startswith("blocks.1") for name in experiment("--depth", 1).tensors)
    assert any(name.startswith("blocks.1") for name in experiment().tensors)


@check("train_samples")
def train_samples(experiment, fixtures):
    found = experiment("--train_samples", 10, "--num_epochs", 1, max_steps=None)
    assert found.sizes(True) == [8, 2] and "10 / 12 / 24 texts" in found.out
    assert experiment("--train_samples", 10, "--seed", 5).logged("loss") != found.logged("loss")
    with pytest.raises(UserError, match="--train_samples is 85; spam has 84 training examples"):
        experiment("--train_samples", 85)


@check("eval_train")
def eval_train(experiment, fixtures):
    found = experiment("--eval_train", "no")
    assert found.result["train_accuracy"] is None and found.result["test_accuracy"] is not None
    assert "accuracy validation" in found.out and experiment().result["train_accuracy"] is not None


@check("compile")
def compiled(experiment, fixtures):
    seen, real = [], torch.nn.Module.compile

    def stand_in(module):  # the same way in, without the minutes of a compiler
        real(module, backend="eager")
        seen.append(type(module).__name__)

    plain = [experiment(*flags) for flags in ((), LORA)]
    fixtures["monkeypatch"].setattr(torch.nn.Module, "compile", stand_in)
    for before, flags in zip(plain, ((), LORA), strict=True):
        found = experiment("--compile", *flags)
        assert found.logged("loss") == pytest.approx(before.logged("loss"), rel=1e-5)
        assert found.tensors.keys() == before.tensors.keys()
    assert len(seen) == 4 and set(seen) == {"Block"}


@check("gradient_checkpointing")
def gradient_checkpointing(experiment, fixtures):
    report = experiment("--memory_report", "--trainable_layers", "all").out
    less = experiment("--memory_report", "--trainable_layers", "all", "--gradient_checkpointing").out
    whole, less = (float(text.split("activations")[1].split()[0]) for text in (report, less))
    assert less < whole / 3  # and nothing else changes: test_savings.py


@check("trim")
def trim(experiment, fixtures):
    assert max(experiment("--trainable_token_pos", "first").widths(training=True)) == 1
    assert max(experiment("--trainable_token_pos", "first", "--trim", "no").widths(training=True)) > 1


@check("reuse_frozen")
def reuse_frozen(experiment, fixtures):
    assert "frozen   1 of 2 blocks run once per text" in experiment().out
    assert "\nfrozen " not in experiment("--reuse_frozen", "no").out  # and nothing else changes: test_savings.py


@check("fsdp")
def fsdp(experiment, fixtures):
    with pytest.raises(UserError, match="--fsdp spreads a model over processes"):  # over two: test_distributed.py
        experiment("--fsdp")


@check("memory_report")
def memory_report(experiment, fixtures):
    found = experiment("--memory_report").out
    assert "memory   for 8 x 21 tokens" in found and "MB were in use" in found
    assert "memory" not in experiment().out.replace("memory_report", "")


@check("verbose")
def verbose(experiment, fixtures):
    assert "\nsettings " in experiment("--verbose").out  # what it prints: test_screen.py
    assert "\nsettings " not in experiment().out


@check("plot_loss")
def plot_loss(experiment, fixtures):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert (experiment("--plot_loss", output_dir=fixtures["alone"] / "drawn").directory / "curves.png").is_file()
    assert not (experiment().directory / "curves.png").exists()


@pytest.mark.parametrize("checks", dict.fromkeys(CHECKS.values()), ids=lambda function: function.__name__)
def test_flag(checks, experiment, fixtures):
    checks(experiment, fixtures)


def test_every_flag_is_checked():
    assert {one.name for one in fields(Run)} == CHECKS.keys()
