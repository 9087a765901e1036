"""Which tokens end and pad a text: what the files say, in which order, and what happens to an id that nobody has."""

import json
from pathlib import Path

import pytest
import torch

from model import config_of, from_pretrained
from model.generation import generate
from model.gpt2 import GPT2, GPT2Config
from model.weights import save_pretrained
from pipeline.inputs import read_tokenizer
from tests.helpers.unigram_files import save
from tools.chatglm_tiny import make as make_chatglm
from tools.learn_vocabulary import save_tokenizer
from utils.errors import UserError

END, OWN, PAD = 256, 257, 258  # <|endoftext|> as learned, and tokens behind it


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a checkpoint with single bytes and three special tokens in its vocabulary, and 40 rows more."""
    save_tokenizer([], tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text()) | {"<|im_end|>": OWN, "[PAD]": PAD}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    save_pretrained(GPT2(GPT2Config(299, 16, 32, 4, 2)), tmp_path)
    return tmp_path


def write(folder: Path, file: str, **settings) -> None:
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))


def ends(folder: Path) -> tuple[int, tuple[int, ...], int]:
    tokenizer = read_tokenizer(folder, config_of(folder))
    return tokenizer.end_of_text, tokenizer.end_ids, tokenizer.pad_id


CONFIG, GENERATION, TOKENIZER, MAP = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SAID = {
    "nothing": ({}, (END, (END,), END)),
    "the config": ({CONFIG: {"eos_token_id": OWN, "pad_token_id": PAD}}, (OWN, (OWN,), PAD)),
    "several ends": ({CONFIG: {"eos_token_id": [OWN, END]}}, (OWN, (OWN, END), OWN)),
    "generation": ({CONFIG: {"eos_token_id": END}, GENERATION: {"eos_token_id": [END, OWN]}}, (END, (END, OWN), END)),
    "the tokenizer": ({TOKENIZER: {"eos_token": "<|im_end|>", "pad_token": "[PAD]"}}, (OWN, (OWN,), PAD)),
    "the tokenizer, at length": ({TOKENIZER: {"eos_token": {"content": "<|im_end|>"}}}, (OWN, (OWN,), OWN)),
    "the map of tokens": ({MAP: {"eos_token": "<|im_end|>", "pad_token": {"content": "[PAD]"}}}, (OWN, (OWN,), PAD)),
    "the map before the config of the tokenizer": (
        {TOKENIZER: {"eos_token": "<|endoftext|>"}, MAP: {"eos_token": "<|im_end|>"}},
        (OWN, (OWN,), OWN),
    ),
    "no map beside tokens with ids": (
        {TOKENIZER: {"added_tokens_decoder": {}, "eos_token": "<|endoftext|>"}, MAP: {"eos_token": "<|im_end|>"}},
        (END, (END,), END),
    ),
    "tokenizer before config": (
        {TOKENIZER: {"eos_token": "<|endoftext|>"}, CONFIG: {"eos_token_id": OWN, "pad_token_id": PAD}},
        (END, (END,), PAD),
    ),
    "both": ({TOKENIZER: {"eos_token": "<|endoftext|>"}, CONFIG: {"eos_token_id": [OWN, END]}}, (END, (OWN, END), END)),
    "the library's default": ({CONFIG: {"eos_token_id": 50256, "bos_token_id": 50256}}, (END, (END,), END)),
    "an ordinary token": ({CONFIG: {"eos_token_id": 65, "pad_token_id": 66}}, (END, (END,), END)),
    "a row without a token": ({CONFIG: {"eos_token_id": 298, "pad_token_id": -1}}, (END, (END,), END)),
    "a token that isn't there": ({TOKENIZER: {"eos_token": "</s>", "pad_token": "<pad>"}}, (END, (END,), END)),
}


@pytest.mark.parametrize("what", SAID)
def test_the_tokenizer_says_it_before_the_config(what, folder):
    said, expected = SAID[what]
    for file, settings in said.items():
        write(folder, file, **settings)
    assert ends(folder) == expected


@pytest.mark.parametrize("ids", [{"eos_token_id": 5}, {"eos_token_id": [5, 7]}, {"pad_token_id": 0, "bos_token_id": 3}])
def test_the_ids_of_a_config_survive_a_round_trip(ids, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    write(folder, CONFIG, **ids)
    save_pretrained(from_pretrained(folder), tmp_path / "again")
    there = transformers.AutoConfig.from_pretrained(tmp_path / "again")
    before = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    assert {name: getattr(there, name) for name in before} == before | ids
    assert config_of(tmp_path / "again") == config_of(folder)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (CONFIG, {"eos_token_id": "<|im_end|>"}, "eos_token_id to '<.im_end.>'; it must be the id of a token"),
        (CONFIG, {"eos_token_id": [1, True]}, "eos_token_id"),
        (CONFIG, {"bos_token_id": [1]}, r"bos_token_id to \[1\]"),
        (CONFIG, {"pad_token_id": 1.0}, "pad_token_id to 1.0"),
        (GENERATION, {"eos_token_id": "x"}, "generation_config.json sets eos_token_id"),
        (TOKENIZER, {"eos_token": 3}, "tokenizer_config.json .*added token 3; it must be an object"),
        (TOKENIZER, {"pad_token": {"id": 3}, "eos_token": ["x"]}, "added token .*; it must be an object"),
    ],
)
def test_what_is_no_id_and_no_token_is_refused(file, settings, message, folder):
    write(folder, file, **settings)
    with pytest.raises(UserError, match=message):
        ends(folder)


def test_a_text_ends_at_any_of_several_tokens():
    torch.manual_seed(0)
    model = from_pretrained("gpt2-pocket")
    ids = torch.arange(5, 15)[None]
    (free,) = generate(model, ids, max_new_tokens=12)
    other = next(token for token in range(3000) if token not in free)
    for number in (3, 7):
        first = free.index(free[number])
        assert generate(model, ids, eos_id=[other, free[number]], max_new_tokens=12) == [free[:first]]
        assert generate(model, ids, eos_id=free[number], max_new_tokens=12) == [free[:first]]
    assert generate(model, ids, eos_id=(), max_new_tokens=12) == [free]


# --- a ChatGLM


@pytest.fixture
def chatglm(tmp_path) -> Path:
    """Return a small ChatGLM with its tokenizer."""
    make_chatglm(save(tmp_path / "tokenizer"), tmp_path / "chatglm", dim=16, n_layers=1)
    return tmp_path / "chatglm"


def test_a_chatglm_ends_with_eop_and_what_the_files_add(chatglm):
    end = config_of(chatglm).end_ids[0]
    assert ends(chatglm)[:2] == (end, (end,))
    write(chatglm, GENERATION, eos_token_id=[7, end])
    assert ends(chatglm)[:2] == (end, (end, 7))
    model = from_pretrained(chatglm).eval()
    tokenizer = read_tokenizer(chatglm, model.config)
    prompt = torch.tensor([tokenizer.build(tokenizer.encode("abc"))[0]])
    with torch.no_grad():
        model.token_embedding.weight[7] = 100 * model.token_embedding.weight[7].sign()
        states = model.encode(prompt)[0, -1]
        model.token_embedding.weight[7] = 100 * states.sign()  # it is always the likeliest
    assert generate(model, prompt, max_new_tokens=3, eos_id=tokenizer.end_ids) == [[]]
    assert generate(model, prompt, max_new_tokens=3, eos_id=end)[0][:1] == [7]


@pytest.mark.parametrize("name", ["mask_token_id", "gmask_token_id", "bos_token_id"])
def test_a_chatglm_looks_for_the_marks_that_its_tokenizer_writes(name, chatglm):
    write(chatglm, CONFIG, **{name: 9})
    with pytest.raises(UserError, match=f"config.json sets {name} to 9, and that token of its tokenizer is [0-9]+"):
        ends(chatglm)


@pytest.mark.parametrize("said, end", [(7, "7"), (None, "no token"), (10**6, "no token"), ([8, 7], "8, 7")])
def test_a_chatglm_without_eop_is_refused(said, end, chatglm):
    write(chatglm, CONFIG, eos_token_id=said)
    with pytest.raises(UserError, match=f"ends a text with {end}, and <eop> of its tokenizer is [0-9]+"):
        ends(chatglm)
