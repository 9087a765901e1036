"""Write the report: one HTML file with the runs as JSON, and the style and the scripts beside this file put into it.

The page loads nothing, and its content security policy forbids it to. Texts of runs are data for the scripts, which make
text of them and nothing else.
"""

import base64
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path

from pipeline.marks import UNTRAINED, Mark, colours_of, shapes_of
from pipeline.report.runs import NOT_THE_SETTING, check_directories, read_runs
from utils.errors import UserError
from utils.files import write_text

HERE = Path(__file__).parent
# In this order: each uses those before it.
SCRIPTS = (
    "dom.js",
    "data.js",
    "filter.js",
    "table.js",
    "plot.js",
    "scatter.js",
    "curves.js",
    "compare.js",
    "run.js",
    "page.js",
)
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
GENERATOR = '<meta name="generator" content="peft-from-scratch report">'


def write_report(directories: list[Path], out: Path | None = None) -> tuple[Path, list[dict]]:
    """Write the report of the runs below the directories. Return its path, and what it shows of each run.

    out    the file to write; None: report.html in the first directory. Raises UserError.
    """
    check_directories(directories)
    out = out or directories[0] / "report.html"
    check_can_be_written(out)
    runs = read_runs(directories, out)
    write_text(out, page_of(runs, [str(directory) for directory in directories]))
    return out, runs


def check_can_be_written(out: Path) -> None:
    """Raise UserError where a directory, or a file that is no report, is in the way."""
    if out.is_dir():
        raise UserError(f"--out {out} is a directory; name a file, such as {out / 'report.html'}")
    if not out.parent.is_dir() and out.parent != Path():
        raise UserError(f"--out {out}: there is no directory {out.parent}")
    if out.is_file():
        with out.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise UserError(f"--out {out} is there and is no report; name another file, or move that one away")


def page_of(runs: list[dict], directories: list[str]) -> str:
    """Return the page's text."""
    marks = [Mark(**run["mark"]) for run in runs if "mark" in run]
    data = {
        "directories": directories,
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "runs": runs,
        "not_the_setting": sorted(NOT_THE_SETTING),
        "shapes": shapes_of(marks),
        "colours": colours_of(marks),
        "untrained": UNTRAINED,
    }
    style, script = (HERE / "page.css").read_text(encoding="utf-8"), script_of()
    parts = {
        "generator": GENERATOR,
        "policy": f"{POLICY}; style-src {hash_of(style)}; script-src {hash_of(script)}",
        "style": style,
        "script": script,
        "data": embedded(data),
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)  # in one pass: what is put in may say {{data}}


def script_of() -> str:
    """Return all scripts as one, in which a name belongs to the page alone."""
    parts = [f"// --- {name}\n{(HERE / name).read_text(encoding='utf-8')}" for name in SCRIPTS]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def hash_of(text: str) -> str:
    """Return the source expression by which a content security policy lets an element of this text be."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(data: dict) -> str:
    """Return JSON that an HTML parser leaves alone: no tag can begin in it, and none ends the script that holds it.

    A lone half of a surrogate pair, which UTF-8 can't hold, stays the escape that it was.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
