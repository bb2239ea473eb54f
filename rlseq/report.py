"""Results of a long measurement, kept in a file after every piece: the same command goes on where it was stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rlseq.errors import RunError

SAME = ("versions", "commit", "machine")
"""What the sittings of one file must have in common, of `rlseq.provenance`: results of other code are no results."""


class Report:
    """Rows of results, each with the number of its sitting.

    Args:
        file: JSON, of earlier sittings if it is there; None to keep nothing.
        settings: all that decides what a row says, plain values.
        where: `provenance()` of this sitting.

    Attributes:
        rows: plain dictionaries; a row that is to be made anew may be taken out.
        sittings: where and when there were rows to add.

    Raises:
        RunError: the file is no report, or one of other settings, versions, code or another machine.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any], where: dict[str, Any]) -> None:
        self.file, self.where = file, where
        self.settings = json.loads(json.dumps(settings))
        self.sittings: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        if file is not None and file.exists():
            self._take(file)

    def _take(self, file: Path) -> None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            settings, self.sittings = content["settings"], [dict(one) for one in content["sittings"]]
            self.rows = [dict(row) for row in content["rows"]]
            before = [(name, one[name], self.where[name]) for one in self.sittings for name in SAME]
        except (OSError, ValueError, LookupError, TypeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise RunError(f"report: {file} must be of this command, got {told}. Give another file.") from error
        for what, theirs, own in (("settings", settings, self.settings), *before):
            if theirs != own:
                raise RunError(f"report: {file} must have the {what} {own}, got {theirs}. Give another file.")

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds rows of this sitting and writes the file, whole or not at all."""
        if self.where not in self.sittings:
            self.sittings.append(self.where)
        self.rows += [{**row, "sitting": self.sittings.index(self.where)} for row in rows]
        if self.file is not None:
            write_json(self.file, self.content())

    def content(self) -> dict[str, Any]:
        """What the file has."""
        return {"settings": self.settings, "sittings": self.sittings, "rows": self.rows}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name, then renames."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)
