"""Tables that are data: what models tell of themselves, to be read by people and by programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Table"]


class Table(Sequence):
    """Rows with names: dicts to a program, aligned columns where it is printed.

    Parameters
    ----------
    columns : mapping of str to str
        Name to format, as `format` takes it; numbers are aligned to the right.
    rows : iterable of sequences
        A value for each column; None is printed as nothing.
    totals : mapping, optional
        What holds for the whole, printed below the rows.
    """

    def __init__(self, columns: Mapping[str, str], rows: Iterable, totals: Mapping | None = None):
        self.columns = dict(columns)
        self.rows = [dict(zip(self.columns, row, strict=True)) for row in rows]
        self.totals = dict(totals or {})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]

    def column(self, name) -> list:
        """The values of one column."""
        return [row[name] for row in self.rows]

    def to_dict(self) -> dict:
        """All of it as JSON knows it."""
        return {"rows": self.rows, "totals": self.totals}

    def __repr__(self):
        cells = [[*self.columns]]
        cells += [[_text(row[name], f) for name, f in self.columns.items()] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        right = [format not in ("", "s") for format in self.columns.values()]
        lines = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in cells
        ]
        lines += [f"{name}: {_text(value, _loose(value))}" for name, value in self.totals.items()]
        return "\n".join(lines)


def _loose(value):
    return ".4g" if isinstance(value, float) else "," if type(value) is int else ""


def _text(value, format):
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " x ".join(map(str, value)) or "()"
    return f"{value:{format}}" if isinstance(value, (int, float)) else str(value)
