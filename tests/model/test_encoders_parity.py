"""Our DistilBERT, BERT and RoBERTa against transformers' with the same weights."""

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from model import from_pretrained
from model.bert import Roberta
from model.distilbert import DistilBert
from model.tokenizers.load import load_tokenizer
from model.weights import save_pretrained
from tests.helpers.encoder_parity import CONTEXT, DIM, KINDS, LABELS, LAYERS, MASK, MASKS, SUFFIXES, VOCAB, Kind
from tests.helpers.parity import TOLERANCE, distance, gradients_by_their_names
from tests.helpers.paths import ROOT
from utils.errors import UserError

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module", params=["lm", "classifier"])
def head(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(kind, head, tmp_path_factory):
    """Their model, and ours with its weights. Tests that change one take a deep copy."""
    torch.manual_seed(1)
    theirs = kind.make(SUFFIXES[head])
    directory = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    return theirs, from_pretrained(directory, head=head).eval()


def labels_for(head: str, n_texts: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Targets: the class of each text, or the token at a third of the real positions."""
    if head == "classifier":
        return torch.arange(n_texts) % LABELS
    asked = torch.arange(20) % 3 == 0
    asked = asked.expand(n_texts, 20) if mask is None else asked & mask.bool()
    return torch.randint(5, VOCAB, (n_texts, 20)).masked_fill(~asked, -100)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)


# Same function


@pytest.mark.parametrize("side", MASKS)
def test_every_layer_and_the_logits_equal_theirs(kind, pair, head, side):
    theirs, ours = pair
    mask = MASKS[side]
    real = torch.ones(3, 20, dtype=torch.bool) if mask is None else mask.bool()
    their_inputs, inputs = kind.both_ways(mask)
    with torch.no_grad():
        expected = theirs(**their_inputs, output_hidden_states=True)
        assert len(expected.hidden_states) == LAYERS + 1
        hidden = ours.embed(inputs["input_ids"], inputs.get("token_type_ids"))
        assert distance(hidden, expected.hidden_states[0]) <= TOLERANCE
        for i, entering in enumerate(expected.hidden_states[:-1]):
            output = ours.run_blocks(entering, mask, i, i + 1)
            assert distance(output[real], expected.hidden_states[i + 1][real]) <= TOLERANCE
        assert distance(ours.encode(**inputs)[real], expected.hidden_states[-1][real]) <= TOLERANCE
        logits = ours(**inputs)
    if head == "lm":
        logits, their_logits = logits[real], expected.logits[real]
    else:  # theirs reads position 0, padding or not
        logits, their_logits = logits, expected.logits
    assert distance(logits, their_logits) <= TOLERANCE


@pytest.mark.parametrize("side", ["no mask", "right"])
def test_loss_and_every_gradient_equal_theirs(kind, pair, head, side):
    theirs, ours = (copy.deepcopy(model) for model in pair)
    mask = MASKS[side]
    their_inputs, inputs = kind.both_ways(mask)
    if mask is None:
        inputs["input_ids"][0, -4:] = kind.pad_id  # padding that isn't masked: its embedding is not to learn from it
    labels = labels_for(head, 3, mask)
    expected = theirs(**their_inputs, labels=labels).loss
    expected.backward()
    loss = loss_of(ours(**inputs), labels)
    loss.backward()
    assert distance(loss, expected) <= TOLERANCE

    translated = gradients_by_their_names(ours)
    expected_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert translated.keys() == expected_gradients.keys()
    # The key's bias adds the same to a query's every score, so its gradient is zero but for rounding.
    scale = max(gradient.abs().max() for gradient in expected_gradients.values())
    too_far = {}
    for name, expected_gradient in expected_gradients.items():
        own = scale if name.endswith(("key.bias", "k_lin.bias")) else expected_gradient.abs().max()
        assert own > 0, name
        d = ((translated[name] - expected_gradient).abs().max() / own).item()
        if not d <= TOLERANCE:
            too_far[name] = d
    assert not too_far


def test_twenty_training_steps_give_their_losses(kind, pair, head):
    theirs, ours = (copy.deepcopy(model).train() for model in pair)
    batches = [(kind.inputs(MASK), labels_for(head, 3, MASK)) for _ in range(4)] * 5

    def losses(model, logits_of):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
        for ids, labels in batches:
            loss = loss_of(logits_of(model(ids, attention_mask=MASK)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    expected = list(losses(theirs, lambda output: output.logits))
    measured = list(losses(ours, lambda logits: logits))
    assert expected[-1] < 0.7 * expected[0]  # it did train
    assert measured == pytest.approx(expected, abs=1e-4, rel=0)


@pytest.mark.parametrize("change", ["transposed query", "query and key swapped"])
def test_a_mix_up_fails_the_tolerance(kind, pair, change):
    theirs, ours = pair[0], copy.deepcopy(pair[1])
    attention = ours.blocks[0].attn
    if change == "transposed query":
        attention.q.weight.data = attention.q.weight.data.T.clone()
    else:
        attention.q.weight, attention.k.weight = attention.k.weight, attention.q.weight
    their_inputs, inputs = kind.both_ways(None)
    with torch.no_grad():
        assert distance(ours(**inputs), theirs(**their_inputs).logits) > 100 * TOLERANCE


# Both directions


def test_what_we_save_loads_strictly_in_transformers_and_in_ours(kind, pair, head, tmp_path):
    ours = pair[1]
    save_pretrained(ours, tmp_path)
    theirs, report = getattr(transformers, kind.prefix + SUFFIXES[head]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report  # nothing missing, unexpected or misshaped
    their_inputs, inputs = kind.both_ways(None)
    with torch.no_grad():
        assert distance(ours(**inputs), theirs.eval()(**their_inputs).logits) <= TOLERANCE
        again = from_pretrained(tmp_path, head=head).eval()
        assert again.config == ours.config
        assert torch.equal(again(**inputs), ours(**inputs))
    their_class = transformers.AutoConfig.from_pretrained(tmp_path).architectures
    assert their_class == [kind.prefix + SUFFIXES[head]]
    if head == "classifier":
        assert theirs.config.num_labels == LABELS


def test_a_bare_body_loads_and_saves(kind, tmp_path):
    theirs = kind.make("Model")
    theirs.save_pretrained(tmp_path / "theirs")
    assert not any(name.startswith(kind.config.model_type) for name in load_file(tmp_path / "theirs/model.safetensors"))
    ours = from_pretrained(tmp_path / "theirs", head=None).eval()
    their_inputs, inputs = kind.both_ways(MASK)
    with torch.no_grad():
        expected = theirs(**their_inputs).last_hidden_state
        assert distance(ours.encode(**inputs)[MASK.bool()], expected[MASK.bool()]) <= TOLERANCE
    save_pretrained(ours, tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {name for name in report["missing_keys"] if not name.startswith("pooler.")} == set()  # ours has none in the body
    assert not report["unexpected_keys"]
    assert torch.equal(again.embeddings.word_embeddings.weight, theirs.embeddings.word_embeddings.weight)


def test_everything_that_published_files_hold_is_accepted(kind, tmp_path):
    """The old names, buffers, tied copies, and what only pretraining needed, as in the repositories on the hub."""
    theirs = kind.make("ForPreTraining" if kind.prefix == "Bert" else "ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    body = kind.config.model_type
    if kind.prefix == "Bert":
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        tensors = {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in tensors.items()}
        assert sum(name.endswith(".gamma") for name in tensors) == 2 + 2 * LAYERS
    tied = {"Bert": "cls.predictions.decoder", "Roberta": "lm_head.decoder", "DistilBert": "vocab_projector"}[kind.prefix]
    tensors[f"{tied}.weight"] = tensors[f"{body}.embeddings.word_embeddings.weight"].clone()
    if kind.prefix != "DistilBert":
        tensors[f"{tied}.bias"] = tensors[f"{tied.removesuffix('.decoder')}.bias"].clone()
    tensors[f"{body}.embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    if kind.prefix == "Roberta":
        tensors |= {f"roberta.pooler.dense.{part}": torch.zeros(DIM) for part in ("weight", "bias")}
    save_file(tensors, tmp_path / "model.safetensors")
    ours = from_pretrained(tmp_path, head="lm").eval()
    their_inputs, inputs = kind.both_ways(None)
    with torch.no_grad():
        output = theirs(**their_inputs)
        assert distance(ours(**inputs), output.get("prediction_logits", output.get("logits"))) <= TOLERANCE
    assert ours.head.weight is ours.token_embedding.weight  # one tensor, trained once
    tensors[f"{body}.surprise"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"unread {body}\.surprise"):
        from_pretrained(tmp_path, head="lm")


# Classifiers that a checkpoint holds, in part or not at all


def test_a_new_classifier_is_drawn_as_published_and_takes_berts_pooler(kind, tmp_path):
    theirs = kind.make("ForPreTraining" if kind.prefix == "Bert" else "ForMaskedLM")
    theirs.config.id2label = {0: "no", 1: "yes"}
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, head="classifier", seed=5)
    assert ours.head.classifier.out_features == 2
    assert from_pretrained(tmp_path, head="classifier", num_labels=7).head.classifier.out_features == 7
    assert not ours.head.classifier.bias.any()
    if kind.prefix == "Bert":
        assert torch.equal(ours.head.dense.weight, theirs.bert.pooler.dense.weight)
        assert torch.equal(ours.head.dense.bias, theirs.bert.pooler.dense.bias)
    else:
        assert ours.head.dense.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not ours.head.dense.bias.any()
    again, other = (from_pretrained(tmp_path, head="classifier", seed=seed) for seed in (5, 6))
    assert torch.equal(ours.head.classifier.weight, again.head.classifier.weight)
    assert not torch.equal(ours.head.classifier.weight, other.head.classifier.weight)


def test_labels_come_from_the_checkpoint(kind, tmp_path):
    theirs = kind.make("ForSequenceClassification")
    theirs.config.id2label = {0: "positive", 1: "neutral", 2: "negative"}
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs", head="classifier")
    assert ours.head.classifier.out_features == 3
    assert ours.head.labels == ("positive", "neutral", "negative")
    save_pretrained(ours, tmp_path / "ours")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").label2id == {
        "positive": 0,
        "neutral": 1,
        "negative": 2,
    }
    assert from_pretrained(tmp_path / "theirs", head="classifier", num_labels=3).head.labels == ours.head.labels
    with pytest.raises(UserError, match="classifier for 3 labels, but num_labels says 2"):
        from_pretrained(tmp_path / "theirs", head="classifier", num_labels=2)
    random = from_pretrained(tmp_path / "theirs", head="classifier", num_labels=2, random_weights=True)
    assert random.head.classifier.out_features == 2


def test_half_a_classifier_is_refused(kind, tmp_path):
    kind.make("ForTokenClassification").save_pretrained(tmp_path)  # its `classifier` reads hidden states as they are
    with pytest.raises(UserError, match=r"without the dense layer|unread classifier\.weight"):
        from_pretrained(tmp_path, head="classifier")


def test_a_body_has_no_masked_language_model(kind, tmp_path):
    kind.make("Model").save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"missing (vocab_transform|cls\.predictions\.transform\.dense|lm_head\.dense)\.weight"
    ):
        from_pretrained(tmp_path, head="lm")


# Real weights: those of all-MiniLM-L6-v2


@pytest.fixture(scope="module")
def sentences(minilm) -> dict[str, torch.Tensor]:
    texts = ["The minister said the new road would open in spring.", "A masterpiece.", "Free entry, text WIN to 80086 now!"]
    return dict(transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt"))


def test_a_pretrained_bert_equals_theirs(minilm, sentences):
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    ours = from_pretrained(minilm, head="classifier", num_labels=2).eval()
    real = sentences["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**sentences, output_hidden_states=True)
        hidden = ours.embed(sentences["input_ids"], sentences["token_type_ids"])
        for i, their_hidden in enumerate(expected.hidden_states):
            assert distance(hidden[real], their_hidden[real]) <= TOLERANCE
            hidden = ours.run_blocks(hidden, real, i, i + 1)
        pooled = torch.tanh(ours.head.dense(ours.encode(**sentences)[:, 0]))
        assert distance(pooled, expected.pooler_output) <= TOLERANCE


@pytest.mark.parametrize("kind", ["distilbert", "roberta"])
def test_a_bert_becomes_another_encoder(kind, minilm, sentences, tmp_path):
    command = [sys.executable, "-m", f"tools.bert_to_{kind}", minilm, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/vocab.txt").is_file()
    assert load_tokenizer(tmp_path / "out").encode("a film") == load_tokenizer(minilm).encode("a film")
    bert, ours = (from_pretrained(directory, head=None).eval() for directory in (minilm, tmp_path / "out"))
    library_class = {"distilbert": transformers.DistilBertModel, "roberta": transformers.RobertaModel}[kind]
    more = {"add_pooling_layer": False} if kind == "roberta" else {}
    theirs, report = library_class.from_pretrained(tmp_path / "out", output_loading_info=True, **more)
    assert not any(report.values()), report
    assert type(ours) is {"distilbert": DistilBert, "roberta": Roberta}[kind] and ours.config.n_layers == 6
    sentences = {name: tensor for name, tensor in sentences.items() if name != "token_type_ids"}
    real = sentences["attention_mask"].bool()
    with torch.no_grad():
        expected = bert.encode(**sentences)[real]
        assert distance(ours.encode(**sentences)[real], expected) <= TOLERANCE
        assert distance(theirs.eval()(**sentences).last_hidden_state[real], expected) <= TOLERANCE
