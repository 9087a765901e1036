"""Check the flags of what is trained."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.flags.register import LORA, check, differ
from tests.helpers.methods import DenseHead
from tests.helpers.small import make_checkpoint
from utils.errors import UserError


@check("adapter")
def adapter_of_the_library(experiment, fixtures):
    folder, path = fixtures["alone"] / "adapter", "base_model.model.transformer.h.0.attn.c_attn"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["h.0.attn.c_attn"]}'
    )
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
    counts["vera"] = head + 13 * 256 + 2 * (5 * 32 + 128) + 2  # a d per Linear layer, and a b per output: no matrix
    counts["hira"] = counts["lora"]
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


@check("vera_rank", "vera_seed")
def vera(experiment, fixtures):
    vera = ("--trainable_layers", "vera", "--lora_target", "attn.q")
    for rank in (3, 7):
        found = experiment(*vera, "--vera_rank", rank).tensors
        assert {tuple(t.shape) for name, t in found.items() if "vera" in name} == {(rank,), (32,)}
    plain, again, other = (experiment(*vera, *more) for more in ((), ("--vera_seed", 0), ("--vera_seed", 1)))
    assert plain.logged("loss") == again.logged("loss")
    assert plain.logged("loss")[0] == other.logged("loss")[0]  # nothing is added yet
    assert differ(plain.tensors, other.tensors)
    with pytest.raises(UserError, match="--vera_rank is 0; it must be at least 1"):
        experiment(*vera, "--vera_rank", 0)


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


@check("lora_matching")
def lora_matching(experiment, fixtures):
    for matching, blocks in (("components", [1]), ("endswith", [1, 11])):
        checkpoint = make_checkpoint(fixtures["alone"] / matching, "a few words", n_layers=12)
        flags = ("--lora_target", "1.attn.c_proj", "--lora_matching", matching, "--train_head", "no")
        found = experiment(*LORA, *flags, checkpoint=checkpoint).tensors
        assert found.keys() == {f"blocks.{n}.attn.out.lora_{part}" for n in blocks for part in "ab"}
    with pytest.raises(UserError, match=r"ends with 'attn.q': they end with attn.c_attn"):
        experiment(*LORA, "--lora_target", "attn.q", "--lora_matching", "endswith")


@check("prefix_dropout")
def prefix_dropout(experiment, fixtures):
    flags = ("--trainable_layers", "prefix", "--prefix_length", 4)
    plain, dropped = experiment(*flags), experiment(*flags, "--prefix_dropout", 0.5)
    assert plain.logged("loss") != dropped.logged("loss")
    start = [
        experiment(*flags, *more, learning_rate=0).logged("loss", "final test") for more in ((), ("--prefix_dropout", 0.5))
    ]
    assert start[0] == start[1]  # nothing is dropped in an evaluation


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
