"""What several seeds of the chat log's rows say to the questions of its plan: differences in pairs, with intervals.

Two rows of a pair differ in one thing. Each difference is taken seed by seed, in nats, and its interval is Student's t over
the seeds, on these test dialogues.
"""

from pipeline.comparison.statistics import interval
from published import get_table
from tools.logs import logs_of
from tools.published_tables import markdown, read_table

# What a pair is about, and the numbers of its rows: the first one less the second one.
PAIRS = (
    ("MLP less q, k, v", ((1, 5), (3, 7), (11, 17), (13, 19))),
    ("first three less last three blocks", ((3, 1), (7, 5), (13, 11), (19, 17))),
    ("LoRA less Freeze", ((11, 1), (13, 3), (17, 5), (19, 7))),
)
# Folders of results/ with the seeds of the rows, at the logged rate and at larger ones.
LOGGED = ("chat-smollm2", "chat-smollm2-seeds")
LARGER = ("chat-smollm2-larger-rates", "chat-smollm2-larger-rates-seeds")
MEASURED = {"learned": "test_loss", "kept": "general_loss"}


def runs_of(number: int, folders: tuple[str, ...]) -> dict[int, dict]:
    """Return the logs of a row in some folders, by their seeds."""
    lines = [(folder, line) for folder in folders if (line := read_table(folder, "chat").get(number))]
    return {log["seed"]: log for folder, line in lines for log in logs_of(folder, line["command"])}


def questions_table(folders: tuple[str, ...]) -> list[str]:
    """Return a table with a line for each pair of rows, from the logs in some folders."""
    titles = {row.number: row.title.replace("query_key_value", "qkv").split(", ") for row in get_table("chat").all_rows}
    numbers = {number for _, pairs in PAIRS for pair in pairs for number in pair}
    runs = {number: runs_of(number, folders) for number in numbers}
    lines = []
    for what, pairs in PAIRS:
        for one, other in pairs:
            shared = [word for word in titles[one] if word in titles[other]]
            cells = [difference(runs[one], runs[other], measure) for measure in MEASURED.values()]
            lines.append([f"{one}, {other}", what, ", ".join(shared), *cells])
    return markdown(["rows", "difference", "what they share", *MEASURED], lines)


def difference(ours: dict[int, dict], theirs: dict[int, dict], measure: str) -> str:
    """Return the mean difference over the seeds of both and half of its 95% interval."""
    seeds = sorted(ours.keys() & theirs.keys())
    center, half = interval([ours[seed][measure] - theirs[seed][measure] for seed in seeds])
    return f"{center:+.3f} ± {half:.3f}"
