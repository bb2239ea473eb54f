"""The pages of docs/backbones map equations to code: what they name is there."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rlseq import backbones, kernels

PAGES = Path(__file__).parents[2] / "docs" / "backbones"
FOLDER = Path(backbones.__file__).parent
MODULES = [importlib.import_module(f"rlseq.backbones.{file.stem}") for file in FOLDER.glob("*.py")]


def named(page: str) -> Iterator[str]:
    """What stands in backticks in the last column of a page's table of equations."""
    table = page.partition("## Equations and code")[2].partition("\n\n|")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        yield from re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" | ")[2])


def found(name: str, modules: list[ModuleType]) -> bool:
    """Whether code has a file, an operation, a class, or a function, method or attribute of this name."""
    if name.endswith(".py"):
        return (FOLDER / name.removeprefix("backbones/")).is_file()
    if name.startswith("kernels."):
        return hasattr(kernels, name.removeprefix("kernels."))
    owner, _, member = name.partition("=")[0].partition(".")
    for module in modules:
        if not member and re.search(rf"^\s*(def |class )?{owner}\b", inspect.getsource(module), re.MULTILINE):
            return True
        if member and hasattr(module, owner):
            return re.search(rf"(def |self\.){member}\b", inspect.getsource(getattr(module, owner))) is not None
    return False


@pytest.mark.parametrize("name", backbones.available())
def test_page_names_code_that_is_there(name: str) -> None:
    names = list(named((PAGES / f"{name}.md").read_text()))
    assert len(names) >= 5
    assert [one for one in names if not found(one, MODULES)] == []


@pytest.mark.parametrize("name", ["_stac.py", "kernels.scan", "Blok", "Block.backward", "GauMixer.gate", "no_such"])
def test_name_of_nothing_is_noticed(name: str) -> None:
    assert not found(name, MODULES)
