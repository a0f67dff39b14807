"""Short plain-text tables, as printed at the end of a command."""

from collections.abc import Sequence

Cell = str | int | float | None


def format_cell(cell: Cell) -> str:
    """A cell as text: numbers with three decimals, None as a dash."""
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def format_p_value(p: float | None) -> str | None:
    """A p-value with three decimals, or that it is smaller; None stays None."""
    return None if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def format_interval(limits: Sequence[float] | None, sign: str = "+") -> str | None:
    """Lower and upper end with three decimals; None stays None. Differences have a sign, shares none (``sign=""``).

    >>> format_interval([-0.1, 0.25]), format_interval((0.5, 0.75), sign="")
    ('[-0.100, +0.250]', '[0.500, 0.750]')
    """
    return None if limits is None else f"[{limits[0]:{sign}.3f}, {limits[1]:{sign}.3f}]"


def format_table(rows: Sequence[Sequence[Cell]], headers: Sequence[str]) -> str:
    """Align rows in columns: numbers to the right, text to the left.

    Floats get three decimals, None becomes a dash. Pass text for any other format.

    Raises:
        ValueError: If a row does not have one cell per header.

    Example:
        >>> print(format_table([["prefix", 8, 0.7812], ["importance", 10, None]], ["policy", "blocks", "quality"]))
        policy      blocks  quality
        ----------  ------  -------
        prefix           8    0.781
        importance      10        -
    """
    check_rows(rows, headers)
    texts = [[format_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts)]
    right = [is_numeric([row[i] for row in rows]) for i in range(len(headers))]
    lines = [list(headers), ["-" * width for width in widths], *texts]
    return "\n".join(_align(line, widths, right) for line in lines)


def check_rows(rows: Sequence[Sequence[Cell]], headers: Sequence[str]) -> None:
    """Raise ValueError if a row does not have one cell per header."""
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"expected {len(headers)} cells per row ({', '.join(headers)}), got {len(row)}: {row!r}")


def is_numeric(cells: Sequence[Cell]) -> bool:
    """Whether a column holds numbers, apart from empty cells, and at least one."""
    filled = [cell for cell in cells if cell is not None]
    return bool(filled) and all(isinstance(cell, (int, float)) for cell in filled)


def _align(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(cells, widths, right)]
    return "  ".join(padded).rstrip()
