"""What the suite is made of: single measurements, each of a table and with its importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """One measurement.

    Attributes:
        table: where its row goes, in place of an earlier one of that name. name: what is measured.
        importance: 0 first; what the time does not suffice for is left out from the other end.
        run: measures it: the row, by column.
    """

    table: str
    name: str
    importance: int
    run: Callable[[], dict[str, Any]]


def ratio(of: float | None, to: float | None) -> float | None:
    """of / to, where both were measured."""
    return None if of is None or to is None else of / to
