"""Published rows as data: what each one changes, what was printed for it, and what to know about it."""

from dataclasses import dataclass, field

from errors import UserError
from run import Run


@dataclass(frozen=True)
class Row:
    number: int
    title: str
    run: Run  # only what the row says; everything else is the task's recipe
    published: dict[str, float]  # accuracies in per cent: train, validation, test; and minutes
    note: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    source: str
    rows: list[Row] = field(repr=False)

    def row(self, number: int) -> Row:
        for row in self.rows:
            if row.number == number:
                return row
        raise UserError(f"the table {self.name} has no row {number}; it has {self.rows[0].number}-{self.rows[-1].number}")


def get_table(name: str) -> Table:
    if name not in TABLES:
        raise UserError(f"unknown table {name!r}; choose {', '.join(TABLES)}")
    return TABLES[name]


from published import spam  # noqa: E402  (a table's file needs the classes above)

TABLES: dict[str, Table] = {table.name: table for table in (spam.TABLE,)}
