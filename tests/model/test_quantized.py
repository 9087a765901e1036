"""Frozen weights in fewer bits: their values, and that a model computes with just these values, forward and backward."""

import copy

import pytest
import torch
from torch.nn import functional as F

from model import from_pretrained
from model.base_precision import PRECISIONS, dequantize, quantize, weights_of
from model.quantized import HalfWeight, QuantizedWeight, RowwiseWeight
from model.registry import ARCHITECTURES
from model.weights import save_pretrained
from peft import BitFit, DoRA, Freeze, FreezeBlocks, LoRA, attach, export, merge, share
from pipeline import memory
from tests.helpers.architectures import small_config
from tests.helpers.methods import ALL, CONFIG, IDS, LABELS, OWN, tiny_gpt2, train, trained_names
from utils.errors import UserError

WEIGHT = torch.tensor([[127.0, -63.4, 0.6, -127.0], [0.07, 0.01, -0.05, 0.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture(params=sorted(PRECISIONS))
def precision(request):
    return request.param


@pytest.fixture(scope="module", params=["gpt2", "distilbert", "qwen2"])
def directory(request, tmp_path_factory):
    """Return a drawn checkpoint."""
    torch.manual_seed(1)
    entry = ARCHITECTURES[request.param]
    config = small_config(request.param)
    model = entry.model(config, entry.classifier_head(config, 2, entry.position, False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    save_pretrained(model, folder)
    return folder


def numbers(weight):
    return weight.dequantize(torch.float32)


def quantized_of(model):
    return {path: one for path, one in weights_of(model).items() if isinstance(one, QuantizedWeight)}


def classifier(directory, precision="fp32", trained=()):
    return from_pretrained(directory, head="classifier", base_precision=precision, trained=trained)


def test_rows_of_whole_numbers():
    kept = RowwiseWeight(WEIGHT.shape, 8).copy_(WEIGHT)
    assert kept.codes.tolist() == [[127, -63, 1, -127], [127, 18, -91, 0], [0, 0, 0, 0]]
    assert torch.allclose(kept.scales, torch.tensor([[1.0], [0.07 / 127], [0.0]]))
    kept = RowwiseWeight(WEIGHT.shape, 4).copy_(WEIGHT)
    assert kept.codes.shape == (3, 2)
    numbers = kept.dequantize(torch.float32) / torch.tensor([[127 / 7], [0.01], [1.0]])
    assert torch.allclose(numbers, torch.tensor([[7.0, -3, 0, -7], [7, 1, -5, 0], [0, 0, 0, 0]]), atol=1e-5)


def test_a_weight_is_off_by_half_a_step_at_most():
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    for bits in (8, 4):
        kept = RowwiseWeight(weight.shape, bits).copy_(weight)
        error = (kept.dequantize(torch.float32) - weight).abs()
        assert (error <= kept.scales / 2 * (1 + 1e-5)).all() and error.max() > kept.scales.max() / 4
        again = RowwiseWeight(weight.shape, bits).copy_(kept.dequantize(torch.float32))
        assert torch.equal(again.codes, kept.codes)


def test_a_row_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="int4 keeps two weights in a byte; a row of 5"):
        RowwiseWeight(torch.Size([3, 5]), 4)


def test_what_is_kept(directory, precision):
    """The blocks' Linear layers and the token embedding, each in its form; all else as it was, nothing twice."""
    plain, kept = classifier(directory), classifier(directory, precision)
    before, after = weights_of(plain), weights_of(kept)
    assert before.keys() == after.keys()
    quantized = {name for name, weight in after.items() if isinstance(weight, QuantizedWeight)}
    linears = {f"blocks.{path}.weight" for path, one in plain.blocks.named_modules() if isinstance(one, torch.nn.Linear)}
    assert quantized == linears
    assert {after[name].dtype for name in after.keys() - quantized - {"token_embedding.weight"}} == {torch.float32}
    assert after["token_embedding.weight"].dtype == PRECISIONS[precision][1]
    make = PRECISIONS[precision][0]
    for name in quantized:
        alone = make(before[name].shape).copy_(before[name])
        assert torch.equal(numbers(after[name]), numbers(alone))


@pytest.mark.parametrize("amp", [False, True])
def test_a_model_computes_with_these_values(directory, precision, amp):
    """Beside the same model with its weights replaced by the dequantized ones: logits and gradients."""
    quantized = classifier(directory, precision)
    found = []
    for model in (dequantize(copy.deepcopy(quantized)), quantized):
        attach(model, LoRA(rank=4, targets="all"))
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(IDS)
        F.cross_entropy(logits.float(), LABELS).backward()
        found.append([logits.float(), *(p.grad for p in model.parameters() if p.requires_grad)])
    largest = max(gradient.abs().max() for gradient in found[0][1:])
    for whole, kept in zip(*found, strict=True):
        scale = whole.abs().max() + (0.01 * largest if amp else 0)  # bfloat16 has 8 bits
        assert (whole - kept).abs().max() <= (3e-2 if amp else 1e-5) * scale


@pytest.mark.parametrize("directory", ["gpt2", "llama"], indirect=True)
@pytest.mark.parametrize("name", [name for name in OWN if name != "all"])
def test_every_method_trains_what_it_trains_of_a_whole_base(directory, name):
    if name == "bitfit" and directory.name == "llama":
        return  # it has no biases
    if name == "hira":
        with pytest.raises(UserError, match="hira multiplies each weight"):
            attach(classifier(directory, "int8"), ALL[name])
        return
    chosen = FreezeBlocks("last1", "mlp") if name == "freeze" else ALL[name]
    plain = attach(classifier(directory), chosen)
    model = attach(classifier(directory, "int8", trained_names(plain)), chosen)
    assert trained_names(model) == trained_names(plain)
    before = {path: numbers(weight) for path, weight in quantized_of(model).items()}
    start = export(model)
    train(model)
    after = quantized_of(model)
    assert before and all(torch.equal(numbers(after[path]), weight) for path, weight in before.items())
    assert all(not torch.equal(tensor, start[key]) for key, tensor in export(model).items())


def test_merging_gives_plain_layers_of_the_same_function(directory, precision):
    model = attach(classifier(directory, precision), LoRA(rank=4, targets="mlp"))
    model = train(model).eval()
    with torch.no_grad():
        before = model(IDS)
        after = merge(dequantize(model))(IDS)
    assert not quantized_of(model)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_shared_base_is_held_once(directory):
    base = classifier(directory, "int8")
    held = [{one.data_ptr() for one in model.buffers()} for model in (base, share(base))]
    assert held[0] == held[1] != set()


def test_a_language_model_with_a_head_of_its_own(tmp_path):
    torch.manual_seed(2)
    entry = ARCHITECTURES["llama"]
    config = small_config("llama", tied=False)
    model = entry.model(config)
    model.head = entry.lm_head(model)
    save_pretrained(model, tmp_path)
    kept = from_pretrained(tmp_path, base_precision="int8")
    assert kept.head.weight.dtype == torch.float16 and kept.head.weight is not kept.token_embedding.weight
    whole = dequantize(copy.deepcopy(kept))
    with torch.no_grad():
        assert torch.allclose(kept(IDS), whole(IDS), atol=1e-4)
        assert (kept(IDS) - from_pretrained(tmp_path)(IDS)).abs().max() < 0.1 * kept(IDS).abs().max()


def test_weights_in_fewer_bits_do_not_train(directory):
    model = classifier(directory, "int4")
    for method in (Freeze("last_block"), FreezeBlocks("0", "mlp")):
        with pytest.raises(UserError, match="weights in fewer bits can't train"):
            attach(model, method)
    with pytest.raises(UserError, match=r"--lora_init pissa .* --base_precision fp32"):
        attach(model, LoRA(init="pissa"))


def test_nothing_whole_is_kept_for_the_backward_pass():
    """What autograd keeps of a step is what it keeps of a whole base, and no dequantized weight besides."""

    def needed(precision):
        with torch.device("meta"):
            model = tiny_gpt2()
            if precision != "fp32":
                quantize(model, precision)
            return memory.budget(attach(model, LoRA(rank=2, targets="mlp", train_head=False)), 4, 10)

    whole, kept = needed("fp32"), needed("int8")
    dim, n_linear = CONFIG.dim, 3 * 12 * CONFIG.dim**2
    scales, embedding = 4 * 3 * (4 + 4 + 1) * dim, 2 * CONFIG.vocab_size * dim
    assert kept.weights == whole.weights - 3 * n_linear + scales - embedding
    assert kept.activations <= whole.activations


def test_dora_keeps_lengths_of_the_kept_rows(directory):
    model = attach(classifier(directory, "int8"), DoRA(targets="mlp"))
    for module in model.modules():
        if hasattr(module, "magnitude"):
            assert torch.allclose(module.magnitude, numbers(module.weight).norm(dim=1))


def test_half_precision_is_that_of_torch():
    kept = HalfWeight(WEIGHT.shape, torch.bfloat16).copy_(WEIGHT)
    assert torch.equal(kept.dequantize(torch.float32), WEIGHT.bfloat16().float())


@pytest.mark.parametrize("directory", ["gpt2", "distilbert"], indirect=True)
def test_biases_train_beside_them(directory):
    names = trained_names(attach(classifier(directory), BitFit()))
    model = attach(classifier(directory, "int4", names), BitFit())
    F.cross_entropy(model(IDS), LABELS).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
