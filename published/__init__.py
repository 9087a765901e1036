"""The published tables by their names, as --table takes them."""

from published import chat, distilbert, encoders, roberta, spam
from published.table import Table
from utils.errors import UserError

_ALL = (spam.TABLE, distilbert.TABLE, roberta.TABLE, encoders.ADAPTER_TABLE, encoders.FEW_SHOT_TABLE, chat.TABLE)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}


def get_table(name: str) -> Table:
    """Return a table by its name. Raises UserError for a name that isn't in TABLES."""
    if name not in TABLES:
        raise UserError(f"unknown table {name!r}; choose {', '.join(TABLES)}")
    return TABLES[name]
