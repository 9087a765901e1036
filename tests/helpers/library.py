"""Ask the published libraries what they make of a directory, in a process outside the checkout, which hides their peft."""

import json
import subprocess
import sys
from pathlib import Path

# Reads a request a line: {"do": "save" or "result", "folder": ..., "base": ...}; answers each with a line. `plain`:
# tokenizer.json counts as it stands, and special tokens in a text are text.
SERVER = r"""
import json, sys, warnings
import torch, transformers, peft
from transformers.utils import logging
logging.set_verbosity_error(); logging.disable_progress_bar(); torch.set_num_threads(1)
IDS = torch.tensor([[7, 9, 11, 8, 20, 7]])


def ids_of(folder, texts, plain):
    kind = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    tokenizer, how = kind.from_pretrained(folder), {"split_special_tokens": True} if plain else {}
    return [tokenizer(*one, **how)["input_ids"] for one in [*([text] for text in texts), texts[:2]]]


def hidden_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, output_hidden_states=True).hidden_states[-1].flatten().tolist()


def model_of(folder):
    model, info = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if missing := [name for name in info["missing_keys"] if "pooler" not in name]:
        raise ValueError(f"drawn: {missing[0]}")
    return model


def adapted(folder, base):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(model, folder)
    if missing := [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]:
        raise ValueError(f"drawn: {missing[0]}")
    return model


def answer(request):
    folder = request["folder"]
    if request["do"] == "save":
        return transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder) and None
    if request["do"] == "ids":
        return ids_of(folder, request["texts"], request["plain"])
    return hidden_of(adapted(folder, request["base"]) if request["base"] else model_of(folder))


out, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    try:
        said = {"value": answer(json.loads(line))}
    except BaseException as error:
        said = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(said), file=out, flush=True)
"""


class Library:
    """The libraries in a process of their own. `errors` goes where nobody reads."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        words = [sys.executable, "-W", "ignore", "-c", SERVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, cwd=folder, text=True, **pipes)

    def ask(self, what: str, folder: Path, **more) -> dict:
        """Return {"value": ...}, or {"error": ...} where the library fails or draws what the files lack."""
        print(json.dumps({"do": what, "folder": str(folder), **more}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
