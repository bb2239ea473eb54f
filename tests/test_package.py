"""The package: one version, ranges that its pins satisfy, and bundled data that an installed rlseq can reach."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import rlseq

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    return [Requirement(line) for line in lines]


def _pins() -> dict[str, Version]:
    pins: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"constraints.txt: every line is a comment or name==version, got {line!r}"
        name = canonicalize_name(match.group(1))
        assert name not in pins, f"{name} is pinned twice"
        pins[name] = Version(match.group(2))
    return pins


def test_the_version_is_stated_once():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "rlseq/__init__.py"
    assert importlib.metadata.version("rlseq") == rlseq.__version__


def test_the_changelog_has_a_section_for_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(rlseq.__version__)}\]", changelog, re.MULTILINE)


@pytest.mark.parametrize("requirement", _requirements(), ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement: Requirement):
    if canonicalize_name(requirement.name) == "rlseq":
        assert requirement.extras <= set(PYPROJECT["project"]["optional-dependencies"])
        return
    pin = _pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt has no pin for {requirement.name}"
    assert requirement.specifier.contains(pin), f"{pin} is outside {requirement}"


def test_every_dependency_states_a_lower_bound():
    ranges = [requirement for requirement in _requirements() if requirement.name != "rlseq"]
    assert not [str(requirement) for requirement in ranges if ">=" not in str(requirement.specifier)]


def _names_brought() -> set[str]:
    """Every distribution that the run and the tests need, followed through the metadata of what is installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    to_read = [Requirement("rlseq[test]")]
    while to_read:
        requirement = to_read.pop()
        extras = frozenset(requirement.extras)
        for line in importlib.metadata.requires(requirement.name) or []:
            needed = Requirement(line)
            if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            key = (canonicalize_name(needed.name), frozenset(needed.extras))
            if key not in seen:
                seen.add(key)
                to_read.append(needed)
    return {name for name, _ in seen}


def test_what_the_dependencies_bring_is_pinned_too():
    # torch's GPU builds name NVIDIA's libraries with versions of their own
    brought = {name for name in _names_brought() if not name.startswith(("nvidia-", "cuda-"))}
    assert len(brought) > 30
    assert brought <= set(_pins())


def test_torch_and_triton_are_the_pair_that_fits():
    pins = _pins()
    assert (str(pins["torch"]), str(pins["triton"])) == ("2.13.0", "3.7.1")


def test_the_command_line_is_installed_as_rlseq():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="rlseq")
    assert [script.value for script in scripts] == ["rlseq.cli:main"]
    assert callable(next(iter(scripts)).load())


def test_the_bundled_data_is_reachable_and_small():
    folder = Path(str(resources.files("rlseq.data") / "bundled"))
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(sizes.values()) > 100_000, f"no dataset in {sizes}"
    assert sum(sizes.values()) <= 6_000_000


def test_the_bundled_data_says_where_it_comes_from():
    folder = Path(str(resources.files("rlseq.data") / "bundled"))
    metadata = sorted(folder.rglob("*.json"))
    assert metadata
    for path in metadata:
        assert "licen" in json.dumps(json.loads(path.read_text(encoding="utf-8"))).lower(), f"{path} names no licence"


def _readme_commands() -> list[str]:
    """The lines of README.md's shell blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("ending", [".venv/bin/rlseq train", ".venv/bin/python -m pytest -n auto"])
def test_the_readme_sets_up_from_nothing_in_one_line(ending: str):
    commands = [command for command in _readme_commands() if command.endswith(ending) and "venv" in command]
    whole = [command for command in commands if "pip install" in command]
    assert len(whole) == 1, f"README.md has one line that sets up and ends in {ending!r}, got {whole}"
    words = shlex.split(whole[0])
    assert words[:4] == ["python3", "-m", "venv", ".venv"]
    assert "constraints.txt" in words
