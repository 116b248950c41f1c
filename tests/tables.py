"""How the tests read a run's ``metrics.csv``."""

from __future__ import annotations

import csv


def rows(path):
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def untimed(path):
    """The rows without what differs between two equal runs."""
    return [
        {name: value for name, value in row.items() if not name.startswith("wall_time")}
        for row in rows(path)
    ]
