"""The pages of docs/backbones map equations to code: what they name is there."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from rlseq import backbones, kernels

PAGES = Path(__file__).parents[2] / "docs" / "backbones"
FOLDER = Path(backbones.__file__).parent


def named(page: str) -> Iterator[tuple[list[Path], str]]:
    """What stands in backticks in the column ``code`` of a page's tables of equations, with the files it must be in.

    That is the file that the cell names before it, else any file of backbones.
    """
    section = page.partition("## Equations and code")[2].partition("\n## ")[0]
    tables = [table.splitlines() for table in section.split("\n\n") if table.startswith("|")]
    for row in (row for head, _, *rows in tables if head.endswith("| code |") for row in rows):
        files = sorted(FOLDER.glob("*.py"))
        for name in re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" | ")[2]):
            if name.endswith(".py"):
                files = [FOLDER / name.removeprefix("backbones/")]
            yield files, name


def found(files: list[Path], name: str) -> bool:
    """Whether a file is there, kernels have an operation, or a class or function, or a member of one, of this name."""
    if name.endswith(".py"):
        return files[0].is_file()
    if name.startswith("kernels."):
        return hasattr(kernels, name.removeprefix("kernels."))
    if name.startswith("torch.nn."):
        return hasattr(nn, name.removeprefix("torch.nn."))
    owner, _, member = name.partition("=")[0].partition(".")
    for file in files:
        module = importlib.import_module(f"rlseq.backbones.{file.stem}")
        defined = re.search(rf"^(class|def) {owner}\b", file.read_text(), re.MULTILINE)
        if defined and member:
            return re.search(rf"(def |self\.){member}\b", inspect.getsource(getattr(module, owner))) is not None
        if defined or ("=" in name and re.search(rf"\b{owner}: ", file.read_text())):
            return True
    return False


@pytest.mark.parametrize("backbone", backbones.available())
def test_page_names_code_that_is_there(backbone: str) -> None:
    names = list(named((PAGES / f"{backbone}.md").read_text()))
    assert len(names) >= 5
    assert [name for files, name in names if not found(files, name)] == []


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        ("`_stack.py`, `Block`", True),
        ("`_stac.py`", False),
        ("`_rope.py`, `AarenMixer.step`", False),
        ("`AarenMixer.step`", True),
        ("`AarenMixer.gate`", False),
        ("`width`", False),
        ("`kernels.scan`", False),
        ("`key_heads=1`", True),
        ("`no_heads=1`", False),
        ("`torch.nn.LayerNorm`", True),
        ("`torch.nn.NoNorm`", False),
    ],
)
def test_name_of_nothing_is_noticed(cell: str, there: bool) -> None:
    table = f"| paper | code |\n|---|---|\n| eq. 1 | {cell} |\n\n"
    first = "| paper | code |\n|---|---|\n| eq. 0 | `Block` |\n\n"
    for page in (table, first + table, f"{table}## Options\n\n| paper | code |\n|---|---|\n| | `no.py` |\n"):
        assert all(found(files, name) for files, name in named(f"## Equations and code\n\n{page}")) == there
