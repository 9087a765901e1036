"""Unigram models in SentencePiece's files: normalizing, the best way to cut a text, and files that are broken."""

import struct
from itertools import pairwise

import pytest

from model.tokenizers.unigram import Unigram, rounded
from model.tokenizers.unigram_file import NORMAL, fields, parse_unigram, read_unigram
from tests.helpers.unigram_files import MAP, PIECES, WORDS, charsmap, field, message, piece, unigram
from utils.errors import UserError


@pytest.fixture(scope="module")
def small() -> Unigram:
    return Unigram(parse_unigram(unigram()))


def all_ways(text: str) -> list[list[str]]:
    """Return every way to cut a text into pieces of WORDS."""
    if not text:
        return [[]]
    return [[text[:n], *rest] for n in range(1, len(text) + 1) if text[:n] in WORDS for rest in all_ways(text[n:])]


@pytest.mark.parametrize("text", ["▁abc", "▁aabcab", "▁a▁ab▁abc", "▁abababcabcaaab"])
def test_no_way_to_cut_a_text_is_better(small, text):
    found = small.segment(text)
    assert "".join(found) == text
    scores = [sum(WORDS[piece] for piece in way) for way in all_ways(text)]
    assert sum(WORDS[piece] for piece in found) == max(scores)
    assert len(scores) > 1


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("ab", "▁ab"),
        ("  a  b ", "▁a▁b"),
        ("a \u3000\n b", "▁a▁b"),
        ("ﬁ", "▁fi"),
        ("e\u0301e\u0302", "▁ce\u0302"),
        ("a\x01b \x01 c", "▁ab▁c"),
        ("a<n>  b<|blank_2|>c", "▁a<n>▁b<|blank_2|>c"),
        ("", ""),
        (" \u3000\x01 ", ""),
        ("\ud800a\udc00", "▁�a�"),
    ],
)
def test_normalizing(small, text, normalized):
    assert small.normalize(text) == normalized


def test_an_unknown_character_becomes_its_bytes(small):
    ids = small.encode("a海")
    assert [small.pieces[number].text for number in ids] == ["▁a", "<0xE6>", "<0xB5>", "<0xB7>"]
    assert small.decode(ids) == "a海"
    assert small.decode(ids[:2] + ids[3:]) == "a��"  # each byte that is no UTF-8 is one


def test_a_piece_of_a_user_is_one_piece_at_any_price():
    costly = [("<n>", 0.0, 4), ("<", -0.1, NORMAL), ("n", -0.1, NORMAL), (">", -0.1, NORMAL)]
    tokenizer = Unigram(parse_unigram(unigram([*(one for one in PIECES if one[0] != "<n>"), *costly])))
    assert tokenizer.segment("▁<n><n") == ["▁", "<n>", "<", "n"]


def test_of_equally_good_ways_the_one_with_the_longer_last_piece_counts():
    equal = [("x", -1.0, NORMAL), ("xx", -2.5, NORMAL)]
    tokenizer = Unigram(parse_unigram(unigram([*PIECES, *equal])))
    assert tokenizer.segment("xxx") == ["x", "x", "x"]
    equal = [("x", -1.5, NORMAL), ("xx", -2.5, NORMAL)]
    tokenizer = Unigram(parse_unigram(unigram([*PIECES, *equal])))
    assert tokenizer.segment("xxx") == ["x", "xx"]


def test_scores_add_up_in_32_bits():
    """In 64 bits "x", "y" is better than "xy" by 1e-6, which 32 bits lose behind a sum of 1000."""
    scores = [("x", -1.0, NORMAL), ("y", -1.0, NORMAL), ("xy", -2.000001, NORMAL), ("z", -1000.0, NORMAL)]
    tokenizer = Unigram(parse_unigram(unigram([*PIECES, *scores])))
    assert tokenizer.segment("xy") == ["x", "y"]
    assert tokenizer.segment("zxy") == ["z", "xy"]
    assert rounded(-1000.0 - 2.000001) == -1002.0


def test_a_map_is_read_as_it_was_written():
    model = parse_unigram(unigram())
    assert model.replacements == MAP
    assert [tuple(one) for one in model.pieces] == [tuple(one) for one in PIECES]
    many = {chr(code): chr(code + 1) for code in range(0x100, 0x500)} | {f"{a}{b}": b for a, b in pairwise("abcdefgh")}
    assert parse_unigram(unigram(normalizer={2: charsmap(many)})).replacements == many
    assert parse_unigram(unigram(normalizer={2: b""})).replacements == {}


# Broken files

WHOLE = unigram()
LESS = unigram(PIECES[:-1])


def circle() -> bytes:
    """Return a map whose node for "a" is its own child."""
    units = [0] * 256
    units[0] = 0
    units[ord("a")] = ord("a") | ord("a") << 10
    return struct.pack("<257I", 1024, *units) + b"\0"


BROKEN = {
    "nothing": (b"", "no pieces"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "wire type|cut short|field"),
    "json": (b'{"model": {}}', "wire type|cut short|field"),
    "a zip archive": (b"PK\x03\x04" + bytes(60), "wire type|cut short|field"),
    "cut short": (WHOLE[:-100], "cut short: field 3"),
    "cut within a number": (WHOLE + b"\x8a", "cut short within a number"),
    "an endless number": (b"\x0a" + b"\xff" * 20, "more than 10 bytes"),
    "a huge length": (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "has 9223372036854775807 bytes, of which 0"),
    "a wire type of groups": (WHOLE + b"\x0b", "wire type 3; known are 0, 1, 2 and 5"),
    "an unknown field": (WHOLE + field(9, b"x"), "field 9"),
    "pieces that are numbers": (field(1, 7) + WHOLE, "field 1"),
    "BPE": (unigram(trainer={3: 2}), "of type BPE; only unigram"),
    "words": (unigram(trainer={3: 3}), "of type word;"),
    "an odd type": (unigram(trainer={3: 77}), "of type 77;"),
    "no byte fallback": (unigram(trainer={35: 0}), "sets byte_fallback to 0"),
    "spaces behind words": (unigram(trainer={24: 1}), "sets treat_whitespace_as_suffix to 1"),
    "another unknown": (unigram(trainer={44: b"?"}), "sets unk_surface"),
    "no prefix": (unigram(normalizer={3: 0}), "sets add_dummy_prefix to 0"),
    "spaces stay": (unigram(normalizer={4: 0}), "sets remove_extra_whitespaces to 0"),
    "spaces aren't written": (unigram(normalizer={5: 0}), "sets escape_whitespaces to 0"),
    "an unknown field of the normalizer": (unigram(normalizer={9: 1}), "normalizer has a field 9"),
    "a denormalizer": (WHOLE + field(5, message({2: charsmap(MAP)})), "denormalizer"),
    "a map that is a number": (unigram(normalizer={2: 5}), "map is a number"),
    "a map without a trie": (unigram(normalizer={2: b"\1\0"}), "map has 2 bytes"),
    "a trie larger than its map": (unigram(normalizer={2: b"\xf0\0\0\0" + bytes(16)}), "a trie of 240 bytes doesn't fit"),
    "a trie that goes in a circle": (unigram(normalizer={2: circle()}), "circle"),
    "a replacement outside": (unigram(normalizer={2: charsmap(MAP)[:-3]}), "no replacement at"),
    "a piece without text": (unigram(more=field(1, message({2: -1.0}))), "has no text"),
    "a piece that is no UTF-8": (unigram(more=field(1, message({1: b"\xff"}))), "utf-8"),
    "a piece that is too long": (unigram([*PIECES, ("x" * 1000, -1.0, 1)]), "1000 characters; at most 128"),
    "a score that is no number": (unigram([*PIECES, ("x", float("nan"), 1)]), "score nan"),
    "an infinite score": (unigram([*PIECES, ("x", float("-inf"), 1)]), "score -inf"),
    "a score that is a text": (unigram(more=field(1, message({1: b"x", 2: b"1234"}))), "score b'1234'"),
    "a kind of piece": (unigram([*PIECES, ("x", -1.0, 9)]), "of the kind 9; known are 1 to 6"),
    "a piece twice": (unigram([*PIECES, ("a", -1.0, 1)]), "are both 'a'"),
    "two unknowns": (unigram([*PIECES, ("x", -1.0, 2)]), "2 pieces for what is unknown"),
    "a byte that is missing": (LESS, "its 255 pieces of bytes"),
    "no normal pieces": (unigram([one for one in PIECES if one[2] != NORMAL]), "no pieces but special ones"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name):
    content, why = BROKEN[name]
    file = tmp_path / "ice_text.model"
    file.write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        read_unigram(file)
    line = str(caught.value)
    assert line.startswith(f"{file} is no SentencePiece unigram model") and len(line.splitlines()) == 1


def test_any_file_that_is_cut_or_changed_is_read_or_refused():
    for length in range(0, len(WHOLE), 97):
        with pytest.raises(ValueError, match=r"."):
            parse_unigram(WHOLE[:length])
    for place in range(0, len(WHOLE), 61):
        try:
            tokenizer = Unigram(parse_unigram(WHOLE[:place] + bytes([WHOLE[place] ^ 0x55]) + WHOLE[place + 1 :]))
        except ValueError:
            continue
        tokenizer.decode(tokenizer.encode("abc ﬁ\n海"))


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"no SentencePiece unigram model that can be read: .*No such file"):
        read_unigram(tmp_path / "ice_text.model")


def test_fields_are_read_as_protobuf_writes_them():
    values = [(1, 0), (2, 300), (15, 2**40), (16, b""), (44, " ⁇ ".encode()), (2, -2.5)]
    content = b"".join(field(*one) for one in values)
    assert list(fields(content)) == values
    assert list(fields(b"\x11" + struct.pack("<d", 0.1))) == [(2, 0.1)]
    assert next(fields(piece("a", -1.0, 1)))[0] == 1
