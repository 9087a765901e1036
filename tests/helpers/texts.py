"""Provide texts to compare tokenizers on: real ones, odd ones and generated Unicode."""

import csv
import json
import random
import unicodedata
from pathlib import Path

ODD_TEXTS = [
    "",
    " ",
    "\n\n\t  \r\n x  \n",
    "don't we'll I'M they'Re",
    "naïve café ﬁ ﬂ",
    "汉字和假名ひらがな",
    "👩‍👩‍👧‍👦 🇨🇳 \U0001f600",
    "a\u0301\u0323 \u200b\u200d\ufeff\u00a0\u3000\u2028end",
    "١٢٣ ½ ² Ⅷ",
    "\x00\x01\x7f\x85",
    "x" * 300 + "!?" * 50,
    "עברית العربية हिन्दी",
    "ΟΔΥΣΣΕΥΣ İstanbul STRASSE ẞ ǅ",
    "\ufffd a\ufffdb \ue000 \U000f0000",
    "$10 + 5% = ~x^2 `y` <b>",
]


# To learn a small vocabulary from.
TEXTS = [
    "low lower lowest newer newest wider",
    "aaaa aaa aa aaaaaaa",
    "hello, hello! hello?",
    "banana bandana",
    "汉字汉字 😀😀",
]
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Low, lower, lowest; new, newer, newest!",
    "Banana bandana; café, naïve, Ünder. 3.14 + 2",
    "汉字 and kana かな",
]


def rows_of(file: Path) -> list[list[str]]:
    """Return the rows of a GLUE table without its header."""
    return [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[1:] if line]


def sst2(data: Path, split: str) -> list[str]:
    return [row[1 if split == "test" else 0] for row in rows_of(data / f"glue_sst2/{split}.tsv")]


def rte_pairs(data: Path) -> list[tuple[str, str]]:
    return [(row[1], row[2]) for split in ("train", "dev", "test") for row in rows_of(data / f"glue_rte/{split}.tsv")]


def real_texts(data: Path) -> list[str]:
    """Return all texts of SST-2, RTE, ACL-ARC and AG News in `data`."""
    texts = [text for split in ("train", "dev", "test") for text in sst2(data, split)]
    texts += [text for pair in rte_pairs(data) for text in pair]
    for split in ("train", "dev", "test"):
        lines = (data / f"acl_sup/{split}.jsonl").read_text(encoding="utf-8").split("\n")
        texts += [json.loads(line)["text"] for line in lines if line]
    with (data / "agnews_sup/test.csv").open(encoding="utf-8", newline="") as file:
        texts += [text for row in csv.reader(file) for text in row[1:]]
    return texts


def unchanged_since_2002(code: int) -> bool:
    """Return whether Unicode 3.2 had the character, in the category that it has today.

    Which characters are marks, punctuation or controls is up to the Unicode version: ours is Python's, the reference
    library's is older (about 8.0, 2015). Only on what both must know can they be held to be equal. This leaves out, for
    one, the ideographs U+2B820 to U+2B91F, which the reference library misses by a slip in its table.
    """
    category = unicodedata.category(chr(code))
    return category not in ("Cn", "Cs") and category == unicodedata.ucd_3_2_0.category(chr(code))


RANGES = {
    "ascii": [(0x20, 0x7E)],
    "letters": [(0x61, 0x7A)],
    "words": [(0x41, 0x5A), (0x61, 0x7A), (0x20, 0x20)],
    "accented": [(0xA0, 0x24F), (0x1E00, 0x1EFF)],
    "marks": [(0x300, 0x36F), (0x61, 0x65), (0x20D0, 0x20E3), (0x1D165, 0x1D169)],
    "greek and cyrillic": [(0x370, 0x52F), (0x1F00, 0x1FFF)],
    "right to left": [(0x590, 0x6FF), (0x200E, 0x200F), (0x202A, 0x202E), (0xFB1D, 0xFDFF)],
    "south asian": [(0x900, 0xE7F)],
    "east asian": [(0x3000, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1F)],
    "hangul": [(0x1100, 0x11FF), (0xAC00, 0xD7A3)],
    "emoji": [(0x1F300, 0x1F64F), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0x1F1E6, 0x1F1FF)],
    "controls": [(0x00, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x200B, 0x200D), (0x2060, 0x2063), (0xFEFF, 0xFFFD)],
    "white space": [(0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x200A), (0x2028, 0x202F)],
    "symbols": [(0x21, 0x2F), (0x3A, 0x40), (0x2010, 0x206F), (0x20A0, 0x22FF), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF)],
    "anything": [(0x00, 0xD7FF), (0xE000, 0x10FFFF)],
}


def generated_texts(n: int, seed: int = 0) -> list[str]:
    """Draw n texts: half from one of RANGES, half from three. One in fifty is a word of about 100 characters."""
    draw = random.Random(seed)
    pools = {}
    for name, ranges in RANGES.items():
        codes = [code for low, high in ranges for code in range(low, high + 1)]
        pools[name] = [chr(code) for code in codes if name == "emoji" or unchanged_since_2002(code)]
    texts = []
    for i in range(n):
        chosen = [pools[name] for name in draw.sample(sorted(pools), 1 if i % 2 else 3)]
        length = draw.randint(95, 105) if i % 50 == 0 else draw.randint(0, 40)
        pool = [pools["letters"]] if i % 100 == 0 else chosen
        texts.append("".join(draw.choice(draw.choice(pool)) for _ in range(length)))
    return texts
