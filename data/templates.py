"""Prompt templates: how a dialogue becomes text. Those of chat models are data like the others."""

from dataclasses import dataclass, replace

from data.dialogue_records import Turn
from utils.errors import UserError


@dataclass(frozen=True)
class Template:
    """How a dialogue becomes text. The answer follows right after a turn, what ends it right after the answer.

    The texts of `special` are single tokens wherever a template writes them; in a question or an answer they are text.
    """

    turn: str  # around {question}
    about: str = "{question}\n{input}"  # stands for the question where there is an input too
    opening: str = "{prefix}\n"  # in front of the first turn, where there is a prefix
    prefix: str = ""  # the prefix where neither the dialogue nor --source_prefix has one
    always_opens: bool = False  # writes the opening without a prefix too
    start: str | None = None  # the token in front of all, if any; None: what the tokenizer puts in front of a text
    end: str | None = None  # the token that ends an answer; None: the end of the text
    behind: str = ""  # what follows that token
    special: tuple[str, ...] = ()
    strips: bool = False  # leaves out white space around a question, a prefix or an answer
    thinks: bool = False  # an answer may begin with a thought, <think>...</think>; only the last one keeps it

    def question(self, turn: Turn) -> str:
        """Return what a turn asks, its input included."""
        return self.stripped(self.about.format(question=turn.question, input=turn.input) if turn.input else turn.question)

    def answer(self, text: str, is_last: bool = False) -> str:
        """Return an answer as a dialogue has it. The last one has a thought in front, an empty one if there is none."""
        if not self.thinks:
            return self.stripped(text)
        has_thought = "</think>" in text  # an empty one too
        thought = text.split("</think>")[0].split("<think>")[-1].strip("\n") if has_thought else ""
        said = text.split("</think>")[-1].lstrip("\n") if is_last or has_thought else text
        return f"<think>\n{thought}\n</think>\n\n{said}" if is_last else said

    def stripped(self, text: str) -> str:
        """Return the text, without white space around it where the template leaves that out."""
        return text.strip() if self.strips else text


PLAIN = Template(turn="{question}\n")  # as gpt2-pocket saw instructions in its pretraining: line by line, then the end

# Templates that any tokenizer can write. "default" is this one where the model has none of its own.
TEMPLATES = {
    "default": PLAIN,
    "plain": PLAIN,
    # Taori et al. (2023), "Stanford Alpaca", with its shorter preamble for both kinds of record.
    "alpaca": Template(
        turn="### Instruction:\n{question}\n\n### Response:\n",
        about="{question}\n\n### Input:\n{input}",
        opening="{prefix}\n\n",
        prefix="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    ),
}

CHATML = Template(
    turn="<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    opening="<|im_start|>system\n{prefix}<|im_end|>\n",
    start="",
    end="<|im_end|>",
    behind="\n",
    special=("<|im_start|>", "<|im_end|>"),
)
LLAMA3 = Template(
    turn="<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    opening="<|start_header_id|>system<|end_header_id|>\n\n{prefix}<|eot_id|>",
    start="<|begin_of_text|>",
    end="<|eot_id|>",
    special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    strips=True,
)


def llama31(date: str) -> Template:
    """Return the template of Llama 3.1 to 3.3, which tells the model a date: the same each day, so that runs repeat."""
    told = f"Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
    return replace(LLAMA3, opening=LLAMA3.opening.replace("{prefix}", told + "{prefix}"), always_opens=True)


# Templates of chat models, whose tokenizers have the special tokens.
CHAT_TEMPLATES = {
    "chatml": CHATML,
    "smollm2": replace(CHATML, prefix="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2.5": replace(CHATML, prefix="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": replace(CHATML, thinks=True),
    "llama3": LLAMA3,
    "llama3.1": llama31("26 Jul 2024"),
}


def find_template(name: str) -> Template:
    """Return a template by its name. Raises UserError for a name that no template has."""
    known = TEMPLATES | CHAT_TEMPLATES
    if name not in known:
        raise UserError(f"--template is {name!r}; choose {', '.join(known)}")
    return known[name]
