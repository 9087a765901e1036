"""What a terminal can't show ends no program."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

TEXTS = {"Chinese": "你好", "an emoji": "\U0001f44d", "an accent": "café", "a byte of no text": "a\udce9b", "zero": "a\0b"}
PROGRAM = """
import sys
from utils import errors

def main():
    print(sys.argv[1] if len(sys.argv) > 1 else input())
    errors.note("still here")
    raise errors.UserError(f"a name: {TEXT}")

TEXT = TEXT_HERE
sys.argv[1:] = [TEXT] * WITH_ARGUMENT
errors.run_program(main)
"""


def run(program: str, shell: str = "", **environment) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", program]
    words = ["bash", "-c", f'"$0" "$@" {shell}', *words] if shell else words
    return subprocess.run(words, cwd=ROOT, capture_output=True, env=os.environ | environment)


def program(text: str, with_argument: bool = True) -> str:
    return PROGRAM.replace("TEXT_HERE", ascii(text)).replace("WITH_ARGUMENT", str(int(with_argument)))


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp1252", "gbk", "utf-8", "utf-16"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_character_is_printed_in_any_encoding(text, encoding):
    found, name = run(program(text), PYTHONIOENCODING=encoding), encoding.partition(":")[0]
    assert found.returncode == 2 and b"Traceback" not in found.stderr
    assert found.stdout.decode(name).rstrip("\r\n") == text.encode(name, "backslashreplace").decode(name)
    assert "error: a name: " in found.stderr.decode(name)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a locale of Unix")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_character_is_printed_where_the_locale_has_ascii_alone(text):
    found = run(program(text), LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (found.returncode, found.stdout.isascii()) == (2, True) and b"Traceback" not in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix shell")
@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(shell):
    assert run(program("你好"), shell=shell).returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix shell")
def test_bytes_of_another_encoding_can_be_read():
    found = run(program("", with_argument=False), shell=r"< <(printf 'caf\xe9\n')", PYTHONIOENCODING="utf-8:strict")
    assert (found.returncode, found.stdout) == (2, b"caf\\udce9\n")
