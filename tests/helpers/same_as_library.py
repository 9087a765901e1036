"""Whether files with changed settings mean here what they mean to the published libraries, or are refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import torch

import peft
from model import from_pretrained
from model.llama import Rope
from model.tokenizers.load import load_tokenizer
from peft.huggingface.read import FromPeft
from tests.helpers.library import Library
from tests.helpers.small import make_llama
from tests.helpers.watch import Failure
from utils.errors import UserError

IDS = torch.tensor([[7, 9, 11, 8, 20, 7]])
TEXTS = [
    "A good film, naïve 海?",
    "FILM film films a filmis <u>2024  12 x<u>",
    " Ⅱ ﬁne Éclair\n\n  is good ",
    "pre-film. isn't ilm a film",
    "",
]
KINDS = ("gpt2", "bert", "roberta", "distilbert")
ADAPTERS = ("gpt2-lora", "distilbert-dora", "roberta-vera", "gpt2-hira", "bert-ia3", "gpt2-prefix")
LLAMAS = {  # kind, tokenizer, and what is said of the model
    "llama": ("llama", "smollm2", {"qkv_bias": True, "out_bias": True}),
    "llama3": ("llama", "llama3", {"rope": Rope(1e4, 8.0, 1.0, 4.0, 16), "tied": False}),
    "mistral": ("mistral", "smollm2", {"window": 3, "window_layers": (0, 1, 2)}),
    "qwen2": ("qwen2", "qwen", {"window": 3, "window_layers": (1, 2)}),
    "qwen3": ("qwen3", "qwen", {"head_dim": 16}),
    "smollm3": ("smollm3", "smollm2", {"layers_without_rotation": (1,), "window": 3, "window_layers": (1,)}),
}
TEMPLATES = (*(f"json-{kind}" for kind in KINDS), "whole-gpt2", "whole-bert", "whole-roberta", "older-gpt2", "older-bert")


def make_templates(folder: Path, library: Library) -> None:
    """Write tokenizers in the forms that the library has had, beside the models that are in `folder`."""
    for name, (kind, tokenizer, settings) in LLAMAS.items():
        make_llama(folder / name, kind, tokenizer, **settings)
    for name in TEMPLATES:
        form, kind = name.split("-")
        made = shutil.copytree(folder / kind, folder / name)
        if form == "older":
            size = load_tokenizer(made).vocab_size
            pad = "[PAD]" if kind == "bert" else "<|endoftext|>"
            write(made / "added_tokens.json", {"<u>": size, "a film": size + 1})
            write(made / "special_tokens_map.json", {"pad_token": pad, "additional_special_tokens": ["<u>"]})
            write(made / "tokenizer_config.json", {"model_max_length": 64})
            continue
        said = library.ask("save", made)
        assert "value" in said, said
        for file in ("vocab.json", "merges.txt", "vocab.txt"):
            (made / file).unlink(missing_ok=True)
        if form == "whole":
            config = json.loads((made / "tokenizer_config.json").read_text())
            write(made / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def ids_here(folder: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    texts = [tokenizer.encode(text) for text in TEXTS]
    return [tokenizer.build(ids)[0] for ids in texts] + [tokenizer.build(texts[0], texts[1])[0]]


def hidden_here(folder: Path, base: Path | None) -> list[float]:
    with torch.no_grad():
        if base is None:
            return from_pretrained(folder, head=None).eval().encode(IDS).flatten().tolist()
        model = peft.attach(from_pretrained(base, head="classifier", num_labels=2), FromPeft(str(folder)))
        return model.eval().encode(IDS).flatten().tolist()


class Comparison:
    """Compares what a directory with changed settings means here and to the library; counts how that came out."""

    def __init__(self, library: Library, templates: Path):
        self.library, self.templates = library, templates
        self.counts: Counter[str] = Counter()
        self.unchanged: dict[tuple[str, str], dict] = {}  # by template and by what is compared: theirs and ours

    def compare(self, folder: Path) -> None:
        """Raise UserError where the files are refused, Failure where they mean something else here."""
        base = self.templates / folder.name.split("-")[0] if folder.name in ADAPTERS else None
        try:
            ours = {what: self.ours(folder, what, base) for what in (("ids", "hidden") if base is None else ("hidden",))}
            found = [self.outcome(folder, what, base, result) for what, result in ours.items()]
        except UserError:
            self.counts["refused"] += 1
            raise
        order = ("changed as in the library", "the library fails, unchanged here", "nothing changed")
        self.counts[min(found, key=order.index)] += 1

    def outcome(self, folder: Path, what: str, base: Path | None, ours: list) -> str:
        """Return how it came out. Raises Failure."""
        theirs, before = self.theirs(folder, what, base), self.before(folder.name, what, base)
        if "error" in theirs:
            if not same(ours, before["ours"]):
                raise Failure(f"{what}: the library fails ({theirs['error']}), and here something else comes out")
            return "the library fails, unchanged here"
        other = theirs["value"]
        if has_newline(folder.name) and what == "ids":
            ours, other = ours[:-1], other[:-1]
        if not same(ours, other):
            raise Failure(f"{what}: theirs {str(other)[:300]}, ours {str(ours)[:300]}")
        return "nothing changed" if same(ours, before["ours"][: len(ours)]) else "changed as in the library"

    def before(self, name: str, what: str, base: Path | None) -> dict:
        """Return what comes out of the template as it is."""
        if (name, what) not in self.unchanged:
            folder = self.templates / name
            theirs, ours = self.theirs(folder, what, base), self.ours(folder, what, base)
            cut = has_newline(name) and what == "ids"
            pairs = (theirs["value"][:-1], ours[:-1]) if cut else (theirs.get("value"), ours)
            assert same(*pairs), f"{name}, {what}: theirs {str(theirs)[:300]}, ours {str(ours)[:300]}"
            self.unchanged[name, what] = {"ours": ours}
        return self.unchanged[name, what]

    def theirs(self, folder: Path, what: str, base: Path | None) -> dict:
        return self.library.ask(what, folder, texts=TEXTS, base=base and str(base), plain=folder.name in LLAMAS)

    @staticmethod
    def ours(folder: Path, what: str, base: Path | None) -> list:
        return ids_here(folder) if what == "ids" else hidden_here(folder, base)


def has_newline(template: str) -> bool:
    """Return whether a newline stands between two texts here, where the library may put nothing there."""
    return "gpt2" in template or template in LLAMAS


def same(one: list, other: list) -> bool:
    """Return whether ids are equal, or hidden states are up to rounding."""
    if not one or not other or isinstance(one[0], list) or isinstance(other[0], list):
        return one == other
    return len(one) == len(other) and max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4
