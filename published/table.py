"""Published rows as data: what each one changes, what was printed for it, and what to know about it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

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
    own: Run = field(default_factory=Run)  # what the row says on the log's own kind of model, see `Table.own_model`
    position: str | None = None  # which token the log's model reads by itself, for models that by themselves read another

    def with_flags(self, overrides: Run) -> Run:
        """Return the row's run with everything that the flags give.

        A model given by a flag takes the place of the row's, be it a name or a directory. The labels to keep of a
        classifier belong to the model, so the row's are then dropped.
        """
        run = override(self.run, overrides)
        if not (overrides.model or overrides.checkpoint):
            return run
        return replace(run, model=overrides.model, checkpoint=overrides.checkpoint, head_labels=overrides.head_labels)


@dataclass(frozen=True)
class Table:
    """The rows of one log, and how they are run and shown.

    metrics         train, validation, test: accuracies; otherwise names of `result.json` such as test_macro_f1
    stand_in        whether a shipped model or data set is run where the row's can't be had; without it, a row that names a
                    model is about that model, and is left out
    printed         what is shown of `Row.published`; the metrics, unless the log printed something else
    columns         headings of several measured columns, each with how its metrics begin. The first metrics of the first
                    two columns are also plotted against each other
    base            row 0: what the others are compared with, measured along with any of them
    seeds           the published seeds; without them, seeds count up from the run's own
    rate_factors    the factor on all rows' learning rates for models of the size of this one, which need other rates
    own_model       the log's own model, where the rows' runs name none, as the shipped one takes its place. On models of
                    its kind a row's `own` goes before its run
    own_data        names of files for the log's own data, which aren't public
    dialogues_file  the file in --data_dir that is both the auxiliary and the general data set, where it is there
    """

    name: str
    source: str
    rows: list[Row] = field(repr=False)
    metrics: tuple[str, ...] = ("train", "validation", "test")
    stand_in: bool = False
    printed: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    base: Row | None = None
    seeds: tuple[int, ...] = ()
    rate_factors: dict[str, float] = field(default_factory=dict)
    own_model: str | None = None
    own_data: Run = field(default_factory=Run)
    dialogues_file: Path | None = None

    @property
    def all_rows(self) -> list[Row]:
        """Return the base and the rows."""
        return [self.base, *self.rows] if self.base else self.rows

    @property
    def compared(self) -> str:
        """Return the metric whose difference is printed."""
        return "test" if "test" in self.metrics else self.metrics[0]

    def on_own_model(self, row: Row) -> Run:
        """Return a row's run on the log's own model, with files of `own_data`."""
        run = override(override(row.run, row.own), override(self.own_data, Run(model=self.own_model)))
        return run if row.run.auxiliary_dataset else replace(run, auxiliary_dataset=None)

    def row(self, number: int) -> Row:
        """Return a row by its number. Raises UserError for one that the table doesn't have."""
        for row in self.rows:
            if row.number == number:
                return row
        raise UserError(f"the table {self.name} has no row {number}; it has {self.rows[0].number}-{self.rows[-1].number}")
