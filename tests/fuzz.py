"""Break small valid files in thousands of ways, and read them with the code that reads such files.

python -m tests.fuzz --cases 2000 --seed 7       all kinds by turns, and a summary; exit code 1 if any case failed
python -m tests.fuzz --kinds config --case 123   one case again, with its traceback; --keep leaves its files where it says

Each case must be taken, or refused with a UserError whose message is one printable line. It has 10 seconds of computing
and little memory and disk, opens no file outside the directory that was named, and unpickles nothing. Some of the refused
cases are read again by the command line in a process of its own: exit code 2 and one line `error: ...`.

The kinds "settings" and "llama-settings" leave files whole and change what they say: each case must mean here what it
means to transformers and peft, or be refused. They run only where they are named, as they need those libraries.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

LONGEST_LINE = 2500  # characters
EMPTY = Path(tempfile.mkdtemp(prefix="fuzz-"))
# Before huggingface_hub is imported, which reads them then.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{EMPTY}/hf", "PEFT_FROM_SCRATCH_CACHE": f"{EMPTY}/cache"}

import torch  # noqa: E402

import data.download  # noqa: E402
import experiments  # noqa: E402
import model.weights  # noqa: E402
import peft  # noqa: E402
from config import Run, resolve  # noqa: E402
from data.glue import read_sentences  # noqa: E402
from data.registry import get_task  # noqa: E402
from data.spam import read_collection  # noqa: E402
from model import architecture, from_pretrained  # noqa: E402
from peft.huggingface.read import FromPeft  # noqa: E402
from pipeline import chat, inputs  # noqa: E402
from pipeline.answers import evaluate_answers, scores_of, why_no_words  # noqa: E402
from tests.helpers import chatglm_files as chatglm  # noqa: E402
from tests.helpers import mutations as m  # noqa: E402
from tests.helpers import setting_mutations as settings  # noqa: E402
from tests.helpers.library import Library  # noqa: E402
from tests.helpers.paths import ROOT  # noqa: E402
from tests.helpers.same_as_library import ADAPTERS, LLAMAS, TEMPLATES, Comparison  # noqa: E402
from tests.helpers.same_as_library import make_templates as make_settings  # noqa: E402
from tests.helpers.templates import interrupted_runs, make_templates  # noqa: E402
from tests.helpers.watch import Failure, Watch, limit_resources  # noqa: E402
from utils.errors import UserError  # noqa: E402

# --- what reads the files


def read_model(folder: Path, **how) -> None:
    head = "lm" if architecture(folder).model_type == "gpt2" else "classifier"
    loaded = from_pretrained(folder, head=head, **how).eval()
    with torch.no_grad():
        loaded(torch.zeros(1, min(3, loaded.config.context_length), dtype=torch.long))


def read_tokenizer(folder: Path) -> None:
    config = from_pretrained(folder, head=None).config
    tokenizer = inputs.read_tokenizer(inputs.find_tokenizer_folder(Run(checkpoint=str(folder)), config), config)
    tokenizer.decode(tokenizer.build(tokenizer.encode("A good film, naïve 海?\n\ud800"))[0])
    tokenizer.decode(list(range(tokenizer.vocab_size)))  # a model may write any of them


def read_texts(folder: Path) -> None:
    if (folder / "sentences.tsv").exists():
        read_sentences(folder / "sentences.tsv")
        return
    task = get_task(folder.name)
    run = Run(data_dir=str(folder), checkpoint=str(EMPTY / "templates" / "gpt2"), context_length="64", dataset=folder.name)
    make_batches(task, resolve(run, task.recipe))


def read_dialogues(folder: Path) -> None:
    file = str(folder / ("dialogues.json" if folder.name == "list" else "dialogues.jsonl"))
    task, checkpoint = get_task(file), EMPTY / "templates" / "gpt2"
    make_batches(task, resolve(Run(dataset=file, checkpoint=str(checkpoint)), task.recipe))


def attach_adapter(folder: Path) -> None:
    base = from_pretrained(EMPTY / "templates" / folder.name.split("-")[0], head="classifier", num_labels=2)
    adapted = peft.attach(base, FromPeft(str(folder))).eval()
    with torch.no_grad():
        adapted(torch.zeros(1, 3, dtype=torch.long))


def go_on(folder: Path) -> None:
    flags = interrupted_runs(EMPTY / "templates")[folder.name]
    argv = [*map(str, flags), "--device", "cpu", "--output_dir", str(folder), "--resume"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        experiments.main(argv)


def make_batches(task, run: Run) -> None:
    config = model.config_of(run.source)
    tokenizer = inputs.read_tokenizer(inputs.find_tokenizer_folder(run, config), config)
    batches, _ = task.make_batches(run, task.splits(run), tokenizer, config)
    next(iter(batches["train"].epoch(0)), None)


def unzip(folder: Path) -> None:
    member, destination = "texts/SMSSpamCollection", folder / "cache" / "SMSSpamCollection"
    checks = {member: lambda path: read_collection(path) and None}
    data.download.download_from_zip((str(folder / "texts.zip"),), checks, destination)


def answer(folder: Path) -> None:
    speaker = chat.make_speaker(Run(device="cpu"), str(folder), {"max_new_tokens": 2})
    "".join(speaker.answer("Who are you?"))


COMPARED: list[Comparison] = []  # with the libraries, once they have been started


def compare(folder: Path) -> None:
    COMPARED[0].compare(folder)


# --- the kinds of input


@dataclass(frozen=True)
class Kind:
    """Name valid directories, how to break files in them (by glob), and what reads them: a function, and a command."""

    templates: tuple[str, ...]
    files: dict[str, tuple[m.Mutation, ...]]
    read: Callable[[Path], object]
    argv: tuple[str, ...] = ()


JSON = (m.tree, m.tree, m.tree, m.tree, m.bomb, m.raw_bytes)
TEXT = (m.lines, m.lines, m.raw_bytes)
SAFETENSORS = (m.safetensors_header, m.safetensors_header, m.safetensors_header, m.safetensors_length, m.raw_bytes)
MODELS = ("gpt2", "bert", "roberta", "distilbert")
TRAIN = ("--max_steps", "1", "--device", "cpu", "--output_dir", "out")
BY_CHECKPOINT = ("--checkpoint", "{}", "--dataset", "sentiment-pocket", *TRAIN)
BY_DATA = ("--data_dir", "{}", "--dataset", "{name}", "--checkpoint", "{templates}/gpt2", "--context_length", "64", *TRAIN)
RUNS, OWN = ("lora", "prefix", "stages"), ("own-csv", "own-tsv", "own-json", "own-jsonl")
BY_ADAPTER = ("--checkpoint", "{base}", "--adapter", "{}", "--dataset", "sentiment-pocket", *TRAIN)
RUN_FILES = {"result.json": JSON, "trained.safetensors": SAFETENSORS}
STATE_FILES = {"states/*": SAFETENSORS, "metrics.jsonl": (m.line_of_json, *TEXT)}
VOCABULARIES = {"vocab.json": JSON, "merges.txt": TEXT, "vocab.txt": TEXT, "tokenizer*.json": JSON}

SETTINGS = {
    "config.json": (settings.config,),
    "tokenizer_config.json": (settings.tokenizer_config,),
    "special_tokens_map.json": (settings.tokenizer_config,),
    "added_tokens.json": (settings.added_tokens,),
    "tokenizer.json": (settings.tokenizer_json,),
    "adapter_config.json": (settings.adapter_config,),
}

LLAMA_SETTINGS = SETTINGS | {"config.json": (settings.llama_config,), "tokenizer.json": (settings.decoder_json,)}
ASK = ("--generate", "Hi")
COMPARING = {"settings", "llama-settings"}  # kinds that are compared with the libraries

KINDS = {
    "safetensors": Kind(MODELS, {"model.safetensors": SAFETENSORS}, read_model, BY_CHECKPOINT),
    "index": Kind(("sharded",), {"*.index.json": (m.escape, *JSON), "model-*": SAFETENSORS}, read_model, BY_CHECKPOINT),
    "config": Kind(MODELS, {"config.json": JSON}, read_model, BY_CHECKPOINT),
    "random": Kind(
        MODELS, {"config.json": JSON}, partial(read_model, random_weights=True), (*BY_CHECKPOINT, "--weights", "random")
    ),
    "vocabulary": Kind((*MODELS, "one-file"), VOCABULARIES, read_tokenizer, BY_CHECKPOINT),
    "tables": Kind(
        ("spam", "sst2", "rte", "agnews_sup", "sentences"), {"**/*.*sv": TEXT, "**/SMS*": TEXT}, read_texts, BY_DATA
    ),
    "records": Kind(
        ("restaurant_sup", "acl_sup"), {"**/*.json": JSON, "**/*.jsonl": (m.line_of_json, *TEXT)}, read_texts, BY_DATA
    ),
    "dialogues": Kind(
        ("list", "lines", "messages"), {"*.json": JSON, "*.jsonl": (m.line_of_json, *TEXT)}, read_dialogues,
    ),
    "own": Kind(
        OWN, {"*.*sv": TEXT, "*.json": JSON, "*.jsonl": (m.line_of_json, *TEXT)}, lambda folder: get_task(str(folder))
    ),
    "archive": Kind(("archive",), {"*.zip": (m.archive, m.archive, m.raw_bytes, m.zip_bomb)}, unzip),
    "run": Kind(RUNS, RUN_FILES, answer, ("--generate", "Hi", "--max_new_tokens", "2", "--run_dir", "{}")),
    "chat": Kind(RUNS, RUN_FILES, answer, ("--max_new_tokens", "2", "--chat", "{}")),
    "adapter": Kind(ADAPTERS, {"*.json": JSON, "*.safetensors": SAFETENSORS}, attach_adapter, BY_ADAPTER),
    "settings": Kind((*TEMPLATES, *TEMPLATES, *ADAPTERS), SETTINGS, compare),
    "llama-settings": Kind((*LLAMAS,), LLAMA_SETTINGS, compare),
    "chatglm": Kind(chatglm.TEMPLATES, chatglm.FILES, chatglm.read, ("--max_new_tokens", "2", "--checkpoint", "{}", *ASK)),
    "resume": Kind(tuple(interrupted_runs(Path())), RUN_FILES | STATE_FILES, go_on),
    "score": Kind(RUNS, RUN_FILES, partial(evaluate_answers, count=2), ("--eval_generate", "2", "--score", "{}")),
}  # fmt: skip
if why_no_words():
    del KINDS["score"]
else:
    scores_of([{"answer": "x", "reference": "x"}])  # imports what takes more memory than a case may


@dataclass(frozen=True)
class Case:
    kind: str
    number: int
    seed: int

    def make(self) -> tuple[Path, str]:
        """Make the directory of this case. Return it, and what was done to it."""
        kind, draw = KINDS[self.kind], m.Draw(f"{self.seed} {self.kind} {self.number}")
        name = draw.choice(kind.templates)
        shutil.rmtree(EMPTY / "case", ignore_errors=True)
        folder = EMPTY / "case" / name
        shutil.copytree(EMPTY / "templates" / name, folder)
        shutil.copytree(EMPTY / "templates" / "outside", EMPTY / "case" / "outside")
        done = []
        for _ in range(1 if self.kind in COMPARING else draw.choice((1, 1, 1, 1, 2))):
            found = {file: how for glob, how in kind.files.items() for file in sorted(folder.glob(glob)) if file.is_file()}
            if not found:
                break
            file = draw.choice(list(found))
            how = m.misplace if self.kind not in COMPARING and draw.random() < 0.05 else draw.choice(found[file])
            done.append(f"{file.relative_to(folder)}: {how.__name__}")
            if how is m.misplace:
                m.misplace(draw, file)
                continue
            try:
                file.write_bytes(how(draw, file.read_bytes()))
            except Exception:  # it is broken already, and no longer what this mutation knows
                file.write_bytes(m.raw_bytes(draw, file.read_bytes()))
        return folder, f"{name}, {'; '.join(done)}"


def read_case(case: Case, folder: Path, watch: Watch) -> str | None:
    """Return the message of the refusal, or None where the input was taken. Raise whatever else happens."""
    try:
        with watch.over(folder):
            KINDS[case.kind].read(folder)
    except UserError as error:
        line = str(error)
        if not line.isprintable() or len(line) > LONGEST_LINE:
            raise Failure(f"says {line[:300]!r}, {len(line)} characters") from None
        return line
    return None


def read_from_the_shell(case: Case, folder: Path) -> None:
    """Raise Failure unless `experiments.py` refuses the input as it should."""
    known = {"{}": str(folder), "{name}": folder.name, "{templates}": str(EMPTY / "templates")}
    known["{base}"] = f"{known['{templates}']}/{folder.name.split('-')[0]}"
    words = [word.replace("{templates}", known["{templates}"]) for word in KINDS[case.kind].argv]
    argv = [sys.executable, str(ROOT / "experiments.py"), *(known.get(word, word) for word in words)]
    shutil.rmtree(EMPTY / "shell", ignore_errors=True)
    (EMPTY / "shell").mkdir()
    found = subprocess.run(argv, cwd=EMPTY / "shell", capture_output=True, text=True, input="", timeout=120)
    lines = found.stderr.splitlines()
    if found.returncode != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        raise Failure(f"exit code {found.returncode} and on standard error {found.stderr[-1500:]!r}")


def fuzz(cases: list[Case], shells: int, verbose: bool) -> int:
    """Read all cases, and `shells` of the refused ones from the shell too. Print the counts, return the failures."""
    watch = Watch([str(ROOT), str(EMPTY / "templates")])
    counts, refused = {kind: Counter() for kind in KINDS}, []

    def failed(case: Case, done: str, what: str) -> None:
        counts[case.kind]["FAILED"] += 1
        print(f"FAILED --kinds {case.kind} --case {case.number} ({done}): {what}", flush=True)

    for case in cases:
        folder, done = case.make()
        try:
            line = read_case(case, folder, watch)
            counts[case.kind]["taken" if line is None else "refused"] += 1
            if line is not None and KINDS[case.kind].argv and folder.name != "sentences":
                refused.append(case)
            if verbose:
                print(f"{case.kind} {case.number} ({done}): {line or 'taken'}")
        except KeyboardInterrupt:  # what there is so far is shown
            break
        except BaseException as error:  # Rust's panics are no Exceptions either
            where = [(Path(one.filename).name, one.lineno) for one in traceback.extract_tb(error.__traceback__)[-3:]]
            failed(case, done, f"{type(error).__name__}: {str(error)[:300]!r} at {where}")
            if verbose:
                traceback.print_exc()
    order = m.Draw(0).sample(refused, len(refused))
    chosen = sorted(order, key=lambda case: [one for one in order if one.kind == case.kind].index(case))[:shells]
    for case in chosen:
        folder, done = case.make()
        try:
            read_from_the_shell(case, folder)
            counts[case.kind]["shell"] += 1
        except (Failure, subprocess.TimeoutExpired) as error:
            failed(case, f"{done}, from the shell", str(error))
    print(f"{'kind':<14}" + "".join(f"{name:>10}" for name in ("taken", "refused", "FAILED", "shell")))
    for kind, found in counts.items() if not verbose else ():
        print(f"{kind:<14}" + "".join(f"{found[name]:>10}" for name in ("taken", "refused", "FAILED", "shell")))
    total = sum(counts.values(), Counter())
    print(f"{'all':<14}" + "".join(f"{total[name]:>10}" for name in ("taken", "refused", "FAILED", "shell")))
    return total["FAILED"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    usual = [kind for kind in KINDS if kind not in COMPARING]
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=usual, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--case", type=int, help="of one kind, this case alone")
    parser.add_argument("--shells", type=int, default=20, help="so many refused cases from the shell too (default 20)")
    parser.add_argument("--keep", action="store_true", help="leave the files of the last case")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"seed {args.seed}", flush=True)
    try:
        make_templates(EMPTY / "templates")
        if COMPARING & {*args.kinds}:
            library = Library(EMPTY / "library")
            make_settings(EMPTY / "templates", library)
            COMPARED.append(Comparison(library, EMPTY / "templates"))
        limit_resources()
        data.download.offline, data.download.any_answers = (lambda: False), (lambda *_: True)
        data.download._fetch = shutil.copyfile  # an address is the path of a file here
        cases = [Case(args.kinds[i % len(args.kinds)], i // len(args.kinds), args.seed) for i in range(args.cases)]
        if args.case is not None:
            cases = [replace(cases[0], kind=kind, number=args.case) for kind in args.kinds]
        failures = fuzz(cases, args.shells, args.case is not None)
        for comparison in COMPARED:
            print("settings:", ", ".join(f"{n} {what}" for what, n in comparison.counts.most_common()))
        return 1 if failures else 0
    finally:
        for comparison in COMPARED:
            comparison.library.close()
        if args.keep:
            print(f"kept {EMPTY}")
        else:
            shutil.rmtree(EMPTY, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
