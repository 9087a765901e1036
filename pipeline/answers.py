"""What a trained language model answers to held-out dialogues, and how close that comes to the answers of the data.

Which measures say so depends on the kind of model (`MEASURES`). Without its own, BLEU-4 is that of `sacrebleu` over all
answers (Papineni et al. 2002), ROUGE-1, -2 and -L the mean F-measure of `rouge_score` over them (Lin 2004). Neither package
is needed for anything else. Chinese and Japanese count by characters.
"""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from config import Run
from data.batching import by_length
from data.chat import ChatTask
from data.chatglm_encoder import make_encoder
from data.dialogues import Dialogue
from data.encode import padded_length
from model.generation import generate, left_padded
from model.registry import architecture_of
from model.tokenizers.base import Tokenizer
from pipeline import chatglm_scores
from pipeline.chatglm_scores import SCORES as SCORES
from pipeline.reload import load_run
from pipeline.result import read_result, write_json, write_text
from training import distributed
from training.device import pick_device
from utils.errors import UserError

SPLITS = ("test", "general")  # whose dialogues are answered
FILE = "samples.jsonl"
# Kana, those of half width too, the ideographs, and the signs that repeat one.
CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def evaluate_answers(directory: str | Path, count: int, device: str | None = None) -> dict:
    """Add to a run that has ended what `--eval_generate count` adds to a run. Return its result with the scores.

    Raises UserError.
    """
    trained, directory = load_run(directory), Path(directory)
    task, result = trained.inputs.task, read_result(directory)
    if not isinstance(task, ChatTask):
        raise UserError(f"{directory} was trained on {task.name}, which has no dialogues to answer")
    if result.get("interrupted"):
        raise UserError(f"{directory} holds an interrupted run; end it with --resume first")
    need_scorers(trained.inputs.model_config)
    need_dialogues(trained.inputs.splits)
    run = replace(trained.run, eval_generate=count)
    model = trained.model.to(pick_device(device or "auto"))
    scores = answer_and_score(model, run, trained.inputs.splits, trained.inputs.tokenizer, directory)
    result |= scores | {"config": asdict(run)}
    write_json(directory / "result.json", result)
    return result


def with_answers(result: dict, run: Run, directory: Path) -> dict:
    """Return the result of a run that has ended with what `run.eval_generate` asks for, scored now unless it has been.

    Raises UserError.
    """
    answered = result.get("config", {}).get("eval_generate", 0)
    if run.eval_generate and run.eval_generate != answered and not result["interrupted"]:
        return evaluate_answers(directory, run.eval_generate, run.device)
    return result


def why_no_scores(model_config: Any) -> str:
    """Return "" where the answers of a model can be scored, else what is missing."""
    return measures_of(model_config).why_missing()


def need_scorers(model_config: Any) -> None:
    """Raise UserError where the packages that score a model's answers aren't installed."""
    if reason := why_no_scores(model_config):
        raise UserError(f"--eval_generate: {reason}")


def need_dialogues(splits: dict[str, list[Dialogue]]) -> None:
    """Raise UserError where no dialogues are held out that could be answered."""
    if not any(splits.get(split) for split in SPLITS):
        raise UserError(
            f"--eval_generate: no dialogues are held out to be answered; it takes those of {' and '.join(SPLITS)}"
        )


def answer_and_score(
    model: nn.Module, run: Run, splits: dict[str, list[Dialogue]], tokenizer: Tokenizer, directory: Path
) -> dict[str, float]:
    """Answer the first `run.eval_generate` dialogues of each of SPLITS, and write the answers into `directory`.

    Returns the scores as `result.json` has them: test_bleu4, general_rouge1, ...
    """
    by_split = {
        split: answer_in_turns(model, run, splits.get(split, [])[: run.eval_generate], tokenizer) for split in SPLITS
    }
    lines = [{"split": split, **sample} for split, samples in by_split.items() for sample in samples]
    write_text(directory / FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    measures = measures_of(model.config)
    scores = {split: measures.scores_of(samples) for split, samples in by_split.items() if samples}
    return {f"{split}_{name}": value for split, values in scores.items() for name, value in values.items()}


def answer_in_turns(model: nn.Module, run: Run, dialogues: list[Dialogue], tokenizer: Tokenizer) -> list[dict]:
    """Return `answers` to all dialogues, in their order. Of N processes, each answers every N-th."""
    own = answers(model, run, dialogues[distributed.rank() :: distributed.size()], tokenizer)
    in_turns = zip_longest(*distributed.gather(own))
    return [sample for round_ in in_turns for sample in round_ if sample is not None]


def answers(model: nn.Module, run: Run, dialogues: list[Dialogue], tokenizer: Tokenizer) -> list[dict]:
    """Return answers to the last question of each dialogue: {"prompt", "reference", "answer"}, in their order.

    They are greedy, or sampled as it is usual for the model's kind. Half the context at most is kept free for an answer.
    What is too long for the rest is cut as for training, see `DialogueEncoder`.
    """
    how, context = architecture_of(model.config).answering, model.config.context_length
    length = min(padded_length(run, context, context), how.max_length)
    sampling = replace(how.sampling, max_new_tokens=run.max_target_length or how.sampling.max_new_tokens)
    encoder = make_encoder(tokenizer, run, length)
    room = min(sampling.max_new_tokens, how.room, max(1, length // 2))
    prompts = [encoder.prompt_with_room(dialogue, room) for dialogue in dialogues]
    written = generate_all(model, prompts, run, encoder.end_ids, {"max_length": length, **asdict(sampling)})
    return [
        {"prompt": tokenizer.decode(ids), "reference": encoder.reference(dialogue), "answer": encoder.said(tokens)}
        for ids, dialogue, tokens in zip(prompts, dialogues, written, strict=True)
    ]


def generate_all(
    model: nn.Module, prompts: list[list[int]], run: Run, end_ids: Sequence[int], how: dict
) -> list[list[int]]:
    """Return the token ids that follow each prompt; `how` are arguments of `generate`.

    Prompts of similar length share a batch, so that little is padded. What is drawn depends on the run's seed.
    """
    device: torch.device = next(model.parameters()).device
    written: list[list[int]] = [[] for _ in prompts]
    order = by_length([len(ids) for ids in prompts])(0)
    for start in range(0, len(order), run.eval_batch_size):
        numbers = [int(number) for number in order[start : start + run.eval_batch_size]]
        ids, mask = left_padded([prompts[i] for i in numbers])  # [B, T] each
        found = generate(model, ids.to(device), mask.to(device), eos_id=end_ids, seed=run.seed + start, **how)
        for number, tokens in zip(numbers, found, strict=True):
            written[number] = tokens
    return written


# --- scores by words, of all models that have no measures of their own


def why_no_words() -> str:
    """Return "" where answers can be scored by words, else what is missing."""
    missing = [name for name in ("sacrebleu", "rouge_score") if find_spec(name) is None]
    return f"BLEU and ROUGE need {' and '.join(missing)}: pip install sacrebleu rouge-score" if missing else ""


def scores_of(samples: Sequence[dict]) -> dict[str, float]:
    """Return SCORES of samples with an answer and a reference each, as fractions of 1."""
    written = [sample["answer"] for sample in samples]
    references = [sample["reference"] for sample in samples]
    return {"bleu4": bleu4(written, references), **rouge(written, references)}


def bleu4(written: list[str], references: list[str]) -> float:
    """Return BLEU-4 of the whole corpus, from 0 to 1, tokenized as sacrebleu does for Chinese or any other language.

    Its tokenizer for Chinese leaves kana joined, so spaces part them first; of ideographs it makes the same with them.
    """
    from sacrebleu import corpus_bleu

    if not re.search(f"[{CJK}]", "".join(references)):
        return corpus_bleu(written, [references], tokenize="13a").score / 100
    written, references = ([re.sub(f"([{CJK}])", r" \1 ", text) for text in texts] for texts in (written, references))
    return corpus_bleu(written, [references], tokenize="zh").score / 100


class Words:
    """What ROUGE counts: words in lower case, as `rouge_score` has them in English, and each CJK character."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words and CJK characters of a text."""
        return re.findall(rf"[{CJK}]|[^\W_{CJK}]+", text.lower())


def rouge(written: list[str], references: list[str]) -> dict[str, float]:
    """Return the mean F-measures, from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    measures = {"rouge1": "rouge1", "rouge2": "rouge2", "rougel": "rougeL"}  # our names: the package's
    scorer = RougeScorer(list(measures.values()), tokenizer=Words())
    scored = [scorer.score(reference, answer) for reference, answer in zip(references, written, strict=True)]
    return {name: statistics.mean(one[measure].fmeasure for one in scored) for name, measure in measures.items()}


# --- which measures


class Measures(NamedTuple):
    """Scores of answers."""

    why_missing: Callable[[], str]  # "" where they can be had, else what is missing
    scores_of: Callable[[Sequence[dict]], dict[str, float]]  # SCORES of samples, as fractions of 1


# By the names that the kinds of models have for them (model/registry.py).
MEASURES = {
    "words": Measures(why_no_words, scores_of),
    "chatglm": Measures(chatglm_scores.why_no_words, chatglm_scores.scores_of),
}


def measures_of(model_config: Any) -> Measures:
    """Return how the answers of a model are scored."""
    return MEASURES[architecture_of(model_config).answering.measures]
