"""The measures of the tool that the chat log was made with: ROUGE on Chinese words, and BLEU-4 on characters.

The tool is hiyouga/ChatGLM-Efficient-Tuning of April 2023. It cut texts into words with `jieba`, and scored each answer
with `rouge_chinese` and with `nltk`; here only `jieba` is needed. An answer's scores go from 0 to 100, with 4 decimals.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from importlib.util import find_spec

from utils.errors import UserError

SCORES = ("bleu4", "rouge1", "rouge2", "rougel")
BLEU_ORDER = 4  # BLEU counts sequences of 1 to 4 characters
EPSILON = 1e-8  # rouge_chinese adds it to the divisor, so that two equal texts score 0.999999995
# Between the two groups of each of these rouge_chinese begins a new sentence, as it does at a newline.
SENTENCE_ENDS = (r"([。！？?])([^”’])", r"(\.{6})([^”’])", r"(…{2})([^”’])", r"([。！？?][”’])([^，。！？?])")

Tokens = Sequence[Hashable]


def why_no_words() -> str:
    """Return "" where texts can be cut into words, else what is missing."""
    return "" if find_spec("jieba") else "ROUGE on Chinese words needs jieba: pip install jieba"


def words_of(text: str) -> list[str]:
    """Return the words of a text as `jieba` cuts it and `rouge_chinese` counts them. Raises UserError without jieba."""
    if reason := why_no_words():
        raise UserError(reason)
    import jieba

    jieba.setLogLevel("ERROR")  # it reports on standard error how long its dictionary took
    return counted_words(" ".join(jieba.cut(text)))


def counted_words(joined: str) -> list[str]:
    """Return what `rouge_chinese` counts of words with spaces between: all but white space, and "" for a blank sentence.

    Sentences end with SENTENCE_ENDS and with newlines. So a blank line is one without words, and so is what stands between
    a 。 and the newline behind it. Those at the end of a text don't count.
    """
    for pattern in SENTENCE_ENDS:
        joined = re.sub(pattern, r"\1\n\2", joined)
    sentences = [sentence for sentence in joined.rstrip().split("\n") if sentence]
    return [word for sentence in sentences for word in sentence.split() or [""]]


def scores_of(samples: Sequence[dict]) -> dict[str, float]:
    """Return SCORES of samples with an answer and a reference each: the means, as fractions of 1. Raises UserError."""
    scored = [scores_of_answer(sample["answer"], sample["reference"]) for sample in samples]
    return {name: statistics.mean(one[name] for one in scored) / 100 for name in SCORES}


def scores_of_answer(answer: str, reference: str) -> dict[str, float]:
    """Return SCORES of one answer as the tool logged them: from 0 to 100, with 4 decimals. Raises UserError."""
    scores = {"bleu4": bleu4(answer, reference), **rouge(words_of(answer), words_of(reference))}
    return {name: round(100 * value, 4) for name, value in scores.items()}


def rouge(answer: Tokens, reference: Tokens) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, -2 and -L (Lin 2004) of two texts in words, from 0 to 1.

    ROUGE-1 and -2 count each different sequence of 1 or 2 words once, however often it occurs. ROUGE-L counts the longest
    sequence of words that is in both texts in this order, with gaps or without.
    """
    scores = {}
    for n in (1, 2):
        of_answer, of_reference = set(ngrams(answer, n)), set(ngrams(reference, n))
        scores[f"rouge{n}"] = f_measure(len(of_answer & of_reference), len(of_answer), len(of_reference))
    scores["rougel"] = f_measure(longest_common(answer, reference), len(answer), len(reference))
    return scores


def f_measure(n_common: int, n_answer: int, n_reference: int) -> float:
    """Return the F-measure of so many common parts."""
    if not n_common:
        return 0.0
    precision, recall = n_common / n_answer, n_common / n_reference
    return 2 * precision * recall / (precision + recall + EPSILON)


def longest_common(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common subsequence. lengths[j] is that of a's first tokens with b's first j."""
    lengths = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0  # of one token less in both
        for j, other in enumerate(b, start=1):
            longest = diagonal + 1 if token == other else max(lengths[j], lengths[j - 1])
            diagonal, lengths[j] = lengths[j], longest
    return lengths[-1]


def bleu4(answer: Tokens, reference: Tokens) -> float:
    """Return BLEU-4 (Papineni et al. 2002) of an answer, from 0 to 1: of texts, by characters.

    It is the geometric mean of four precisions, times a penalty for a short answer. Where the answer has something in
    common with the reference, but no sequence of n characters, a small precision takes the place of 0: half of one match,
    the next time a quarter, and so on (the third method of Chen and Cherry 2014, as nltk has it).
    """
    logarithms, n_without = [], 0
    for n in range(1, BLEU_ORDER + 1):
        of_answer, of_reference = Counter(ngrams(answer, n)), Counter(ngrams(reference, n))
        n_common, n_all = (of_answer & of_reference).total(), max(1, of_answer.total())
        if n == 1 and not n_common:
            return 0.0
        n_without += not n_common
        logarithms.append(math.log((n_common or 0.5**n_without) / n_all))
    penalty = min(0.0, 1 - len(reference) / len(answer))
    return math.exp(penalty + statistics.mean(logarithms))


def ngrams(tokens: Tokens, n: int) -> Iterator[tuple[Hashable, ...]]:
    """Return the sequences of n tokens that stand in a row."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)
