"""Hold docs/what_is_read.md to the lists in the code."""

import re

import pytest

from model.config_settings import EVERYWHERE, own_settings
from model.registry import ARCHITECTURES
from model.tokenizers import settings as tokenizers
from peft.huggingface.settings import ADAPTER
from tests.helpers.paths import ROOT
from tools import render_settings
from utils.errors import UserError

TEXT = render_settings.PAGE.read_text(encoding="utf-8")
KNOWN = {
    "config": EVERYWHERE,
    **{f"config-{kind}": own_settings(entry, entry.config()) for kind, entry in ARCHITECTURES.items()},
    **{f"tokenizer-config-{kind}": tokenizers.CONFIG[kind] for kind in ("gpt2", "wordpiece", "chatglm")},
    **{f"tokenizer-model-{kind}": tokenizers.MODEL[kind] for kind in ("gpt2", "wordpiece")},
    **{f"adapter-{kind}": known for kind, known in ADAPTER.items()},
    "special-tokens-map": tokenizers.SPECIAL_TOKENS_MAP,
    "added-token": tokenizers.ADDED_TOKEN,
    "tokenizer-json": tokenizers.SECTIONS,
}


def test_the_page_is_what_the_lists_say():
    assert render_settings.render(TEXT) == TEXT, "run: python -m tools.render_settings"
    assert sorted(found[2] for found in render_settings.MARKED.finditer(TEXT)) == sorted(render_settings.LISTS)


@pytest.mark.parametrize("name", KNOWN)
def test_every_key_of_a_list_is_on_the_page_and_in_one_list_alone(name):
    known = KNOWN[name]
    table = next(found[3] for found in render_settings.MARKED.finditer(TEXT) if found[2] == name)
    lists = [{*known.used} - {*known.refused}, known.names_of_harmless(), {*known.refused}]
    for words, keys in zip(("used", "harmless", "refused"), lists, strict=True):
        rows = [line.split(" | ")[-1] for line in table.splitlines() if line.startswith(f"| {words} ")]
        assert keys <= {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    assert not lists[0] & lists[1] and not lists[1] & lists[2]


def test_a_page_that_differs_is_noticed(monkeypatch):
    assert render_settings.render(TEXT.replace("`chat_template`", "`chat_templates`")) == TEXT
    with pytest.raises(UserError, match="there is no list 'x'; choose config"):
        render_settings.render("<!-- settings: x -->\n<!-- end -->")


def test_the_readme_names_the_page():
    assert "docs/what_is_read.md" in (ROOT / "README.md").read_text(encoding="utf-8")
