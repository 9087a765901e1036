"""Published rows as data: what each one changes, what was printed for it, and what to know about it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from config import Run, override
from utils.errors import UserError


@dataclass(frozen=True)
class Row:
    """One line of a published log."""

    number: int
    title: str
    run: Run  # only what the row says; everything else is the task's recipe
    published: dict[str, float]  # in per cent, by the table's metrics; what else was printed, under names of its own
    note: str = ""
    series: tuple[float, ...] = ()  # validation accuracies in per cent, evaluation after evaluation, where the log has them
    published_std: dict[str, float] | None = None

    def with_flags(self, said: Run) -> Run:
        """The row's run with everything that the flags say. A model of theirs, by name or as a directory, takes the place
        of the row's, and so do the labels to be kept of its classifier."""
        run = override(self.run, said)
        if not (said.model or said.checkpoint):
            return run
        return replace(run, model=said.model, checkpoint=said.checkpoint, head_labels=said.head_labels)


@dataclass(frozen=True)
class Table:
    """metrics    train, validation, test: accuracies; otherwise names of `result.json` such as test_macro_f1
    stand_in   rows name the log's model and data, and others may stand in where those can't be had; without it a row that
               names a model is about that model
    printed    what is shown of `Row.published`; the metrics, unless the log printed something else
    columns    headings of several measured columns, each with how its metrics begin; with them the first metrics of the
               first two columns are drawn against each other
    base       row 0: what the others are compared with, measured along with whichever of them
    choose     (a row's run, what was said) -> what is run, and what there is to say about it"""

    name: str
    source: str
    rows: list[Row] = field(repr=False)
    metrics: tuple[str, ...] = ("train", "validation", "test")
    stand_in: bool = False
    printed: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    base: Row | None = None
    choose: Callable[[Run, Run], tuple[Run, list[str]]] | None = None
    seeds: tuple[int, ...] = ()  # the published ones; without them seeds count up from the run's own

    @property
    def compared(self) -> str:
        """The metric whose difference is printed."""
        return "test" if "test" in self.metrics else self.metrics[0]

    def row(self, number: int) -> Row:
        """Raises UserError for a number that the table doesn't have."""
        for row in self.rows:
            if row.number == number:
                return row
        raise UserError(f"the table {self.name} has no row {number}; it has {self.rows[0].number}-{self.rows[-1].number}")
