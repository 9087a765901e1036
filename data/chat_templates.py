"""Which template a model's own `chat_template` is. That one is a program in Jinja; it is compared with known ones, not run.

A known one is compared in full where it writes plain dialogues. Its parts about tools may be anything. What it says of
itself, the default system message or a date, is taken from the text.
"""

import re
from dataclasses import replace

from data.templates import CHAT_TEMPLATES, PLAIN, Template, llama31
from model.tokenizers.base import Tokenizer

ANYTHING = "…"
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
    "{% if tools %}…{% else %}"
    + SYSTEM
    + "{% endif %}{% endif %}{% set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}…"
    "{% endfor %}{% for message in messages %}<user>{% elif message.role == 'assistant' %}…"
    "{% if loop.index0 > ns.last_query_index %}{% if loop.last or (not loop.last and reasoning_content) %}"
    "{{ '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + "
    "content.lstrip('\n') }}{% else %}{{ '<|im_start|>' + message.role + '\n' + content }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + content }}{% endif %}…{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
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
        "{% endif %}{% for message in messages %}{% if "
        + TURNS
        + " or (message.role == 'assistant' and not message.tool_calls)"
        " %}" + USER + "{% elif message.role == 'assistant' %}…{% endif %}{% endfor %}" + ASKS,
    ),
    ("qwen3", QWEN3.replace("<user>", "{% if " + TURNS + " %}" + USER)),
    ("qwen3", QWEN3.replace("<user>", READS_CONTENT + "{% if " + TURNS + " %}" + CONTENT)),
    ("llama3", LLAMA + "{% if add_generation_prompt %}" + ASKS_LLAMA + "{% endif %}"),
    ("llama3", LLAMA + ASKS_LLAMA),
    (
        "llama3.1",
        "{{ bos_token }}…{% set date_string = '<date>' %}…{% if messages[0].role == 'system' %}{% set system_message = "
        "messages[0].content|trim %}{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}…{{ 'Cutting Knowledge Date: December 2023\n' }}"
        "{{ 'Today Date: ' + date_string + '\n\n' }}…{{ system_message }}{{ '<|eot_id|>' }}…{% for message in messages %}"
        "{% if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}{{ "
        + HEADER
        + " }}{% elif …{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + ASKS_LLAMA
        + "{% endif %}",
    ),
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


def said_by(known: str, text: str) -> dict[str, str] | None:
    """Return what a simplified template says where `known` has <prefix> and <date>, or None where it is another one."""
    said, place, parts = {}, 0, known.split(ANYTHING)
    for number, part in enumerate(parts):
        pattern = re.sub("<(prefix|date)>", r"(?P<\1>[^'{}]*)", re.escape(part)) + (r"\Z" if part is parts[-1] else "")
        found = re.compile(pattern).search(text, place) if number else re.compile(pattern).match(text)
        if found is None:
            return None
        said |= found.groupdict()
        place = found.end()
    return said


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
