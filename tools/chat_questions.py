"""What several seeds of the chat log's rows say to the questions of its plan: differences in pairs, with intervals.

Two rows of a pair differ in one thing. Each difference is taken seed by seed, in nats, and its interval is Student's t over
the seeds, on these test dialogues.
"""

from pipeline.comparison.statistics import interval
from published import get_table
from tools.logs import logs_of
from tools.published_tables import NOT_MEASURED, markdown, read_table

# What a pair is about, and the numbers of its rows: the first one less the second one.
PAIRS = (
    ("MLP less q, k, v", ((1, 5), (3, 7), (11, 17), (13, 19))),
    ("first three less last three blocks", ((3, 1), (7, 5), (13, 11), (19, 17))),
    ("LoRA less Freeze", ((11, 1), (13, 3), (17, 5), (19, 7))),
)
MEASURED = (("test_loss", "learned"), ("general_loss", "kept"))


def losses(folders: tuple[str, ...], number: int, measure: str) -> dict[int, float]:
    """Return what the runs of a row measured, by their seeds."""
    lines = [(folder, line) for folder in folders if (line := read_table(folder, "chat").get(number))]
    return {log["seed"]: log[measure] for folder, line in lines for log in logs_of(folder, line["command"])}


def questions_table(columns: dict[str, tuple[str, ...]]) -> list[str]:
    """Return a table with a line for each pair of rows.

    columns   what the runs have in common -> the folders of results/ that hold them
    """
    rows, headings = {row.number: row for row in get_table("chat").all_rows}, ["rows", "difference", "what they share"]
    headings += [f"{name}: {heading}" for name in columns for _, heading in MEASURED]
    lines = []
    for title, pairs in PAIRS:
        for one, other in pairs:
            named, others = (rows[number].title.replace("query_key_value", "qkv").split(", ") for number in (one, other))
            words = [word for word in named if word in others]
            cells = [
                difference(*(losses(folders, number, measure) for number in (one, other)))
                for folders in columns.values()
                for measure, _ in MEASURED
            ]
            lines.append([f"{one}, {other}", title, ", ".join(words), *cells])
    return markdown(headings, lines)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Return the mean difference over the seeds of both and half of its 95% interval; a dash for fewer than two."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return NOT_MEASURED
    center, half = interval([ours[seed] - theirs[seed] for seed in seeds])
    return f"{center:+.3f} ± {half:.3f}"
