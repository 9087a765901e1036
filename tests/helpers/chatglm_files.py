"""Break a small ChatGLM's files for `tests/fuzz.py`, and hold what is read of them to what they say.

What config.json says is compared with the fields of the configuration, what ice_text.model says with the ids that the
library sentencepiece finds, where it is installed.
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from config import Run
from model import from_pretrained
from model.generation import generate
from model.tokenizers.chatglm import ChatGLMTokenizer
from model.tokenizers.settings import CONFIG, NAMES
from model.tokenizers.unigram_file import CHARSMAP, NORMALIZER, REQUIRED, TRAINER, fields
from model.weights import save_pretrained
from pipeline.inputs import find_tokenizer_folder, read_tokenizer
from tests.helpers import setting_mutations
from tests.helpers.mutations import Draw, bomb, hostile, raw_bytes, tree
from tests.helpers.paths import SHARED
from tests.helpers.unigram_files import field, message, save
from tests.helpers.watch import Failure
from tools.chatglm_tiny import draw as draw_model

SMALL_ICE = SHARED / "golden/chatglm/small_ice"
TEMPLATES = ("chatglm", "chatglm", *(["chatglm-ice"] if SMALL_ICE.is_dir() else []))  # the second takes longer
TEXTS = ("abc a ab\n\tﬁ  bc", "A good film, naïve 海?\n\ud800", " e\u0301<n>  你好，我们[MASK]<eop> x\u3000Ａ", "")
# Setting -> our field, and what the published class takes where the file has none.
MEANINGS = {
    "vocab_size": ("vocab_size", 150528),
    "max_sequence_length": ("context_length", 2048),
    "hidden_size": ("dim", 4096),
    "num_attention_heads": ("n_heads", 32),
    "num_layers": ("n_layers", 28),
    "inner_hidden_size": ("mlp_dim", 16384),
    "layernorm_epsilon": ("layer_norm_eps", 1e-5),
    "mask_token_id": ("mask_id", 150000),
    "gmask_token_id": ("gmask_id", 150001),
    "bos_token_id": ("start_id", 150004),
}
AS_THEY_ARE = {"position_encoding_2d": True, "pre_seq_len": None, "quantization_bit": 0}  # what else the class computes by


def make_templates(folder: Path) -> None:
    """Write small ChatGLMs with a tokenizer of our own and, where it is there, with a larger one of the published form."""
    for name in dict.fromkeys(TEMPLATES):
        if name == "chatglm":
            save(folder / name)
            (folder / name / "tokenizer_config.json").write_text(json.dumps({**NAMES["chatglm"], "num_image_tokens": 0}))
        else:
            shutil.copytree(SMALL_ICE, folder / name)
        for file in (folder / name).iterdir():
            file.chmod(0o644)
        CHARSMAPS[name] = charsmap_of((folder / name / "ice_text.model").read_bytes())
        tokenizer = ChatGLMTokenizer.from_directory(folder / name)
        save_pretrained(draw_model(tokenizer, dim=16, n_layers=2), folder / name)
        (folder / name / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.end_of_text}))


CHARSMAPS: dict[str, bytes] = {}  # of the templates


# --- mutations


def tokenizer_config(draw: Draw, raw: bytes) -> bytes:
    """Change tokenizer_config.json: a key of any list."""
    content = json.loads(raw)
    pools = (*setting_mutations.of_list(CONFIG["chatglm"]), (*NAMES["chatglm"],))
    setting_mutations.change(draw, content, pools)
    if draw.random() < 0.2:
        name = draw.choice((*NAMES["chatglm"],))
        content[name] = {"content": NAMES["chatglm"][name], "lstrip": draw.choice((True, False)), "rstrip": False}
    return json.dumps(content).encode()


def sentencepiece_fields(draw: Draw, raw: bytes) -> bytes:
    """Change a piece's text, score or kind, a setting of a part, its map, or the order and number of pieces."""
    parts = [*fields(raw)]
    for _ in range(draw.choice((1, 1, 1, 3))):
        places = [place for place, (number, _) in enumerate(parts) if number == 1]
        place, what = draw.choice(places), draw.randrange(8)
        if what < 3:
            parts[place] = 1, changed_piece(draw, parts[place][1])
        elif what == 3:
            other = draw.choice(places)
            parts[place], parts[other] = parts[other], parts[place]
        elif what == 4:
            parts.insert(draw.choice(places), parts[place]) if draw.random() < 0.3 else parts.pop(place)
        else:
            change_part(draw, parts)
    return b"".join(field(number, value) for number, value in parts)


def changed_piece(draw: Draw, raw: bytes) -> bytes:
    found = dict(fields(raw))
    what = draw.randrange(5)
    if what == 0:
        text = draw.choice(("a", "ab", "你", "▁", "▁ab ", "<n>", "x" * 200, "", "é", "\x00", " ", "<0x41>"))
        found[1] = text.encode()
    elif what == 1:
        found[1] = draw.choice((found.get(1, b"")[:-1], found.get(1, b"") * 2, b"\xff\xfe", found.get(1, b"") + b"a"))
    elif what == 2:
        found[2] = draw.choice((0.0, -1.0, 5.0, -1e30, float("nan"), float("inf"), 1e-30, -3.5))
    elif what == 3:
        found[3] = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 2**40))
    else:
        found[draw.choice((1, 2, 3, 4))] = draw.choice((7, 1.5, b"x"))
    return message(found)


def change_part(draw: Draw, parts: list) -> None:
    places = {number: place for place, (number, _) in enumerate(parts) if number != 1}
    number = draw.choice((TRAINER, NORMALIZER))
    if number not in places or draw.random() < 0.1:
        parts.append((draw.choice((TRAINER, NORMALIZER, 4, 5, 6)), message({draw.choice((1, 2, 3)): b"x"})))
        return
    found = dict(fields(parts[places[number]][1]))
    charsmap = found.get(CHARSMAP)
    if number == NORMALIZER and isinstance(charsmap, bytes) and charsmap and draw.random() < 0.5:
        at = draw.choice((draw.randrange(len(charsmap)), draw.randrange(4), len(charsmap) - 1 - draw.randrange(50)))
        found[CHARSMAP] = draw.choice(
            (
                charsmap[:at],
                b"",
                charsmap[:at] + bytes([charsmap[at] ^ 1 << draw.randrange(8)]) + charsmap[at + 1 :],
                charsmap[:at] + draw.randbytes(8) + charsmap[at + 8 :],
            )
        )
    else:
        name = draw.choice((*REQUIRED[number],)) if draw.random() < 0.6 else draw.randrange(1, 50)
        found[name] = draw.choice((0, 1, 2, 3, 4, b"", b"x", " ⁇ ".encode(), 0.5))
    parts[places[number]] = number, message(found)


def generation_config(draw: Draw, raw: bytes) -> bytes:
    """Say in generation_config.json where a text ends."""
    content = json.loads(raw)
    content["eos_token_id"] = draw.choice(
        (content.get("eos_token_id"), [content.get("eos_token_id"), 7], 7, None, hostile(draw))
    )
    return json.dumps(content).encode()


FILES = {
    "config.json": (*[setting_mutations.config] * 6, tree, tree, bomb, raw_bytes),
    "tokenizer_config.json": (*[tokenizer_config] * 6, tree, tree, bomb, raw_bytes),
    "generation_config.json": (generation_config, tree),
    "ice_text.model": (*[sentencepiece_fields] * 5, raw_bytes),
}


# --- what is read


def read(folder: Path) -> None:
    """Read a ChatGLM and its tokenizer, and let it write two tokens. Raise Failure where it means something else."""
    model = from_pretrained(folder, head="lm").eval()
    tokenizer = read_tokenizer(find_tokenizer_folder(Run(checkpoint=str(folder)), model.config), model.config)
    assert isinstance(tokenizer, ChatGLMTokenizer)
    check_config(folder, model, tokenizer)
    check_ids(folder / "ice_text.model", tokenizer)
    ids = torch.tensor([tokenizer.build(tokenizer.encode(TEXTS[0]))[0]])
    if ids.shape[1] < model.config.context_length:
        generate(model, ids, max_new_tokens=2, eos_id=tokenizer.end_ids)


def check_config(folder: Path, model, tokenizer: ChatGLMTokenizer) -> None:
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, (ours, default) in MEANINGS.items():
        if getattr(model.config, ours) != said.get(name, default):
            raise Failure(f"{name} is {said.get(name, default)!r}, and {ours} {getattr(model.config, ours)!r}")
    for name, value in AS_THEY_ARE.items():
        if said.get(name, value) != value:
            raise Failure(f"{name} is {said[name]!r}, which isn't what is computed here")
    if (model.head.weight is model.token_embedding.weight) != said.get("tie_word_embeddings", True):
        raise Failure("the head is tied otherwise than config.json says")
    of_marks = {
        "mask_token_id": tokenizer.mask_id,
        "gmask_token_id": tokenizer.gmask_id,
        "bos_token_id": tokenizer.start_id,
    }
    if any(said.get(name) != number for name, number in of_marks.items()):
        raise Failure("the tokenizer writes other marks than the model looks for")
    ends = said.get("eos_token_id", 150005)
    file = folder / "generation_config.json"
    ends = (json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None) or ends
    if {*(ends if isinstance(ends, list) else [ends])} != {*tokenizer.end_ids}:
        raise Failure(f"a text ends with {ends}, and here with {tokenizer.end_ids}")


def check_ids(file: Path, tokenizer: ChatGLMTokenizer) -> None:
    texts, every = [text for text in TEXTS if text.isprintable() or "\n" in text], list(range(tokenizer.vocab_size))
    for text in texts:
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.decode(every)
    if not find_spec("sentencepiece"):
        return
    theirs = library_of(file)
    for text in (text.encode("utf-8", "replace").decode() for text in texts):
        if theirs.Encode(text) != tokenizer.unigram.encode(text):
            raise Failure(f"{text!r}: theirs {theirs.Encode(text)}, ours {tokenizer.unigram.encode(text)}")
    for number in every:
        if theirs.Decode([number]) != tokenizer.unigram.decode([number]):
            raise Failure(f"{number}: theirs {theirs.Decode([number])!r}, ours {tokenizer.unigram.decode([number])!r}")


def library_of(file: Path):
    """Return the library's reader of a file. It refuses a map with nonsense in places that no text leads to; what is read
    here must then be what the template's map says."""
    from sentencepiece import SentencePieceProcessor

    found, content = SentencePieceProcessor(), file.read_bytes()
    try:
        found.LoadFromSerializedProto(content)
    except RuntimeError as error:
        if "precompiled_charsmap" not in str(error):
            raise Failure(f"sentencepiece refuses the file ({error}), and it is read here") from None
        found.LoadFromSerializedProto(with_map(content, CHARSMAPS[file.parent.name]))
    return found


def charsmap_of(content: bytes) -> bytes:
    return next(dict(fields(value))[CHARSMAP] for number, value in fields(content) if number == NORMALIZER)


def with_map(content: bytes, charsmap: bytes) -> bytes:
    parts = [(number, value) for number, value in fields(content) if number != NORMALIZER]
    return b"".join(field(*part) for part in [*parts, (NORMALIZER, message({CHARSMAP: charsmap}))])
