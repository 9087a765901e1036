"""Which template a model's own `chat_template` is. That one is a program in Jinja; it is compared with known ones, not run.

A known one is compared in full where it writes plain dialogues; what it does about tools may be anything. What it says of
itself, a default system message or a date, is taken from the text.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from data.templates import CHAT_TEMPLATES, PLAIN, Template, llama31
from model.tokenizers.base import Tokenizer

BRANCH = "…"  # anything, in a branch that no plain dialogue takes
SILENT = "‥"  # what writes nothing in a plain dialogue: statements, and blocks about tools
CHANGES = re.compile(r"\{% set (messages|system_message|bos_token)\b")  # statements by which others write something else
# Statements and expressions as `simplified` writes them. <prefix> and <date> are what the text says of itself.
USER = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
CONTENT = USER.replace("message.content", "content")
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
SYSTEM = "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
TURNS = "(message.role == 'user') or (message.role == 'system' and not loop.first)"
HEADER = "'<|start_header_id|>' + message.role + '<|end_header_id|>\n\n'+ message.content | trim + '<|eot_id|>'"
ASKS_LLAMA = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
IN_LOOP = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = " + HEADER + " %}"
LLAMA = IN_LOOP + "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
READS_CONTENT = (
    "{% if message.content is string %}{% set content = message.content %}{% else %}{% set content = '' %}{% endif %}"
)
QWEN3 = (
    "{% if tools %}…{% else %}" + SYSTEM + "{% endif %}{% endif %}"
    "{% set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{% for message in messages[::-1] %}‥{% endfor %}{% for message in messages %}<user>"
    "{% elif message.role == 'assistant' %}‥{% if loop.index0 > ns.last_query_index %}"
    "{% if loop.last or (not loop.last and reasoning_content) %}{{ '<|im_start|>' + message.role + '\n<think>\n' + "
    "reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}"
    "{{ '<|im_start|>' + message.role + '\n' + content }}{% endif %}{% else %}"
    "{{ '<|im_start|>' + message.role + '\n' + content }}{% endif %}{% if message.tool_calls %}…{% endif %}"
    "{{ '<|im_end|>\n' }}{% elif message.role == 'tool' %}…{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA31 = (
    "{{ bos_token }}‥{% set date_string = '<date>' %}‥{% if messages[0].role == 'system' %}"
    "{% set system_message = messages[0].content|trim %}{% set messages = messages[1:] %}{% else %}"
    "{% set system_message = '' %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}‥"
    "{{ 'Cutting Knowledge Date: December 2023\n' }}{{ 'Today Date: ' + date_string + '\n\n' }}‥"
    "{{ system_message }}{{ '<|eot_id|>' }}‥{% for message in messages %}"
    "{% if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}"
    "{{ " + HEADER + " }}{% elif 'tool_calls' in message %}…{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASKS_LLAMA + "{% endif %}"
)
KNOWN: list[tuple[str, str]] = [
    ("chatml", "{% for message in messages %}" + USER + "{% endfor %}" + ASKS),
    (
        "chatml",
        "{% for message in messages %}{% if loop.first and messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\n<prefix><|im_end|>\n' }}{% endif %}" + USER + "{% endfor %}" + ASKS,
    ),
    (
        "qwen2.5",
        "{% if tools %}…{% else %}" + SYSTEM + "{% else %}{{ '<|im_start|>system\n<prefix><|im_end|>\n' }}{% endif %}"
        "{% endif %}{% for message in messages %}{% if " + TURNS + " or (message.role == 'assistant' and "
        "not message.tool_calls) %}" + USER + "{% elif message.role == 'assistant' %}…{% endif %}{% endfor %}" + ASKS,
    ),
    ("qwen3", QWEN3.replace("<user>", "{% if " + TURNS + " %}" + USER)),
    ("qwen3", QWEN3.replace("<user>", READS_CONTENT + "{% if " + TURNS + " %}" + CONTENT)),
    ("llama3", LLAMA + "{% if add_generation_prompt %}" + ASKS_LLAMA + "{% endif %}"),
    ("llama3", LLAMA + ASKS_LLAMA),
    ("llama3.1", LLAMA31),
]


def simplified(text: str) -> str:
    """Return a template in one spelling: without comments and the white space that Jinja leaves out, and with the same
    quotes and ways to name a field."""
    text = re.sub(r"(\s*\{#-|\{#).*?(-#\}\s*|#\}\n?)", "", text.replace("\r\n", "\n"), flags=re.DOTALL)
    text = re.sub(r"\s*\{([%{])-", r"{\1", text)
    text = re.sub(r"-([%}])\}\s*", r"\1}", text)
    text = re.sub(r"^[ \t]+(?=\{%)", "", text, flags=re.MULTILINE).replace("%}\n", "%}")
    text = re.sub(r"\{([%{])\s*(.*?)\s*([%}])\}", r"{\1 \2 \3}", text, flags=re.DOTALL)
    text = text.replace("\\n", "\n").replace('\\"', '"').replace('"', "'")
    return re.sub(r"\['(\w+)'\]", r".\1", text).strip()


def said_by(known: str, text: str, place: int = 0) -> dict[str, str] | None:
    """Return what a simplified template says from `place` on where `known` has <prefix> and <date>; None: it is another."""
    part, gap, rest = re.fullmatch(f"(.*?)(?:([{BRANCH}{SILENT}])(.*))?", known, re.DOTALL).groups()
    pattern = re.compile(re.sub("<(prefix|date)>", r"(?P<\1>[^'{}]*)", re.escape(part)))
    found = pattern.match(text, place)
    if found is None or (gap is None and found.end() < len(text)):
        return None
    if gap is None:
        return found.groupdict()
    next_part = re.split(f"[{BRANCH}{SILENT}]", rest)[0]
    may_stand = is_branch if gap == BRANCH else is_silent
    for start in places_of(next_part, text, found.end()):
        if may_stand(text[found.end() : start]):
            said = said_by(rest, text, start)
            return None if said is None else found.groupdict() | said
    return None


def places_of(part: str, text: str, place: int) -> Iterator[int]:
    """Yield where a part of a known template begins in a text, from `place` on."""
    pattern = re.compile(re.sub("<(prefix|date)>", "[^'{}]*", re.escape(part)))
    return (found.start() for found in pattern.finditer(text, place))


def is_branch(gap: str) -> bool:
    """Return whether a part of a template is within one branch, and others about tools: its blocks end where they began."""
    depth = 0
    for statement in re.findall(r"\{% .*? %\}", gap, re.DOTALL):
        if depth == 0 and (statement == "{% else %}" or (statement.startswith("{% elif") and "tool" not in statement)):
            return False
        depth += change_of_depth(statement)
        if depth < 0:
            return False
    return depth == 0


def is_silent(gap: str) -> bool:
    """Return whether a part of a template writes nothing in a dialogue without tools, nor changes what others write."""
    depth = 0  # within a block about tools
    for part in re.split(r"(\{% .*? %\})", gap, flags=re.DOTALL):
        if depth == 1 and part.startswith(("{% else", "{% elif")):
            return False
        if depth or (part.startswith("{% if") and "tool" in part):
            depth += change_of_depth(part)
        elif part and (not part.startswith("{% ") or CHANGES.match(part)):
            return False
    return depth == 0


def change_of_depth(part: str) -> int:
    """Return 1 where a statement begins a block, -1 where it ends one, else 0."""
    return part.startswith(("{% if ", "{% for ")) - part.startswith(("{% endif", "{% endfor"))


def recognized(text: str) -> Template | None:
    """Return the template that a model's own chat_template is, or None where it is none of those that are known."""
    text = simplified(text)
    for name, known in KNOWN:
        said = said_by(known, text)
        if said is not None:
            return llama31(said["date"]) if "date" in said else replace(CHAT_TEMPLATES[name], **said)
    return None


def own_template(tokenizer: Tokenizer) -> tuple[Template, str]:
    """Return what `--template default` is for a tokenizer, and what there is to say about it, or ""."""
    if tokenizer.chat_template is None:
        return PLAIN, ""
    template = recognized(tokenizer.chat_template)
    if template is None:
        return PLAIN, "the model's chat_template isn't known here, so dialogues are plain lines; --template names another"
    return template, "dialogues are written as the model's chat_template does"
