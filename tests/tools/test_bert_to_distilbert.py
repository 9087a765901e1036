"""A BERT is converted into a directory that holds nothing else, and stays as it is."""

import json

import pytest

from model import from_pretrained
from model.bert import Bert, BertConfig
from model.distilbert import DistilBert
from model.tokenizers.load import load_tokenizer
from model.weights import save_pretrained
from tools import bert_to_roberta
from tools.bert_to_distilbert import bert_to_distilbert, write
from utils.errors import UserError

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film")


def make_bert(directory, vocabulary: bool = True):
    config = BertConfig(vocab_size=7, context_length=8, dim=8, n_heads=2, n_layers=1, mlp_dim=8)
    save_pretrained(Bert(config), directory)
    if vocabulary:
        (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return directory


def test_it_is_written_with_its_vocabulary_and_may_be_written_again(tmp_path):
    for _ in range(2):
        write(bert_to_distilbert, str(make_bert(tmp_path / "bert")), tmp_path / "out")
    assert isinstance(from_pretrained(tmp_path / "out", head=None), DistilBert)
    assert load_tokenizer(tmp_path / "out").encode("Good film") == [5, 6]


def test_the_bert_itself_is_no_place_to_write_to(tmp_path):
    before = (make_bert(tmp_path / "bert") / "config.json").read_text()
    with pytest.raises(UserError, match="is the BERT's own directory"):
        write(bert_to_distilbert, str(tmp_path / "bert"), tmp_path / "bert")
    assert (tmp_path / "bert" / "config.json").read_text() == before


def test_no_vocabulary_of_another_model_is_left_beside_it(tmp_path):
    write(bert_to_distilbert, str(make_bert(tmp_path / "one")), tmp_path / "out")
    with pytest.raises(UserError, match=r"OUT_DIR .*out holds vocab.txt, which"):
        write(bert_to_distilbert, str(make_bert(tmp_path / "other", vocabulary=False)), tmp_path / "out")


def test_a_roberta_names_the_tokenizer_of_the_bert_alone(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    monkeypatch.setattr("sys.argv", ["", str(make_bert(tmp_path / "bert")), str(tmp_path / "out")])
    assert bert_to_roberta.main() == 0
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.encode("Good film") == [5, 6]
    assert tokenizer.build([5], [6], 9) == ([2, 5, 3, 6, 3], None)  # a RoBERTa has one token type
