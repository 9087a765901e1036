"""What a trained language model answers to held-out dialogues, and how close that comes to the answers of the data.

BLEU-4 is that of `sacrebleu` over all answers (Papineni et al. 2002), ROUGE-1, -2 and -L the mean F-measure of
`rouge_score` over them (Lin 2004). Neither is needed for anything else. Chinese and Japanese count by characters.
"""

import json
import re
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

from torch import nn

from config import Run
from data.batching import by_length
from data.chat import Encoder
from data.dialogues import Dialogue
from data.encode import padded_length
from model.generation import generate, left_padded
from model.tokenizers.base import Tokenizer
from pipeline.result import write_text
from training import distributed
from utils.errors import UserError

SCORES = ("bleu4", "rouge1", "rouge2", "rougel")
SPLITS = ("test", "general")  # whose dialogues are answered
LONGEST_ANSWER = 100  # tokens, where --max_target_length doesn't say
FILE = "samples.jsonl"
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and the ideographs


def why_no_scores() -> str:
    """Empty where answers can be scored."""
    missing = [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]
    return f"BLEU and ROUGE need {' and '.join(missing)}: pip install sacrebleu rouge-score" if missing else ""


def need_scorers() -> None:
    """Raises UserError where the packages that score answers aren't installed."""
    if reason := why_no_scores():
        raise UserError(f"--eval_generate: {reason}")


def answer_and_score(
    model: nn.Module, run: Run, splits: dict[str, list[Dialogue]], tokenizer: Tokenizer, directory: Path
) -> dict[str, float]:
    """Answers to the first `run.eval_generate` dialogues of each of SPLITS go into `directory`. Returns what `result.json`
    has of them: test_bleu4, general_rouge1, ..."""
    samples = []
    for split in SPLITS:
        chosen = splits.get(split, [])[: run.eval_generate]
        parts = distributed.gather(answers(model, run, chosen[distributed.rank() :: distributed.size()], tokenizer))
        found = [one for some in zip_longest(*parts) for one in some if one]
        samples += [{"split": split, **sample} for sample in found]
    write_text(directory / FILE, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in samples))
    by_split = {split: [one for one in samples if one["split"] == split] for split in SPLITS}
    scores = {split: scores_of(some) for split, some in by_split.items() if some}
    return {f"{split}_{name}": value for split, values in scores.items() for name, value in values.items()}


def answers(model: nn.Module, run: Run, dialogues: list[Dialogue], tokenizer: Tokenizer) -> list[dict]:
    """Greedy answers to the last question of each dialogue: {"prompt", "reference", "answer"}, in their order.

    Half the context at most is kept for an answer. What is too long for the rest is cut as for training (`Encoder`).
    """
    length = padded_length(run, model.config.context_length, model.config.context_length)
    encoder, device = Encoder(tokenizer, run, length), next(model.parameters()).device
    room = min(run.max_target_length or LONGEST_ANSWER, max(1, length // 2))
    prompts = [encoder.prompt_with_room(one, room) for one in dialogues]
    found: list[str] = [""] * len(prompts)
    order = by_length([len(ids) for ids in prompts])(0)  # similar lengths share a batch, so that little is padded
    for start in range(0, len(order), run.eval_batch_size):
        numbers = [int(number) for number in order[start : start + run.eval_batch_size]]
        ids, mask = (part.to(device) for part in left_padded([prompts[i] for i in numbers]))  # [B, T] each
        written = generate(model, ids, mask, eos_id=tokenizer.end_of_text, max_new_tokens=room)
        for number, tokens in zip(numbers, written, strict=True):
            found[number] = tokenizer.decode(tokens)
    return [
        {"prompt": tokenizer.decode(ids), "reference": one.turns[-1].answer, "answer": answer}
        for ids, one, answer in zip(prompts, dialogues, found, strict=True)
    ]


def scores_of(samples: Sequence[dict]) -> dict[str, float]:
    """SCORES of samples with an answer and a reference each, as fractions of 1."""
    written, wanted = [one["answer"] for one in samples], [one["reference"] for one in samples]
    return {"bleu4": bleu4(written, wanted), **rouge(written, wanted)}


def bleu4(written: list[str], wanted: list[str]) -> float:
    """Of the whole corpus, from 0 to 1, tokenized as sacrebleu does for Chinese or any other language."""
    from sacrebleu import corpus_bleu

    tokenize = "zh" if re.search(f"[{CJK}]", "".join(wanted)) else "13a"
    return corpus_bleu(written, [wanted], tokenize=tokenize).score / 100


class Words:
    """What ROUGE counts: words in lower case, as `rouge_score` has them in English, and each CJK character."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def rouge(written: list[str], wanted: list[str]) -> dict[str, float]:
    """Mean F-measures, from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "rouge1", "rouge2": "rouge2", "rougel": "rougeL"}
    scorer = RougeScorer(list(names.values()), tokenizer=Words())
    found = [scorer.score(target, prediction) for target, prediction in zip(wanted, written, strict=True)]
    return {ours: statistics.mean(one[theirs].fmeasure for one in found) for ours, theirs in names.items()}
