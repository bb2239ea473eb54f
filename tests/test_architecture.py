"""The shape of the code, held by tests: import arrows, file sizes, the seven stages, what `import rlseq` may load."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlseq"
MAX_LINES = 400

# unit -> the units that it may import besides itself. A unit is a subpackage of rlseq or a module at its top.
WORDS = {"types", "errors"}
TOOLS = {"progress", "provenance", "report"}
AGENT_SIDE = WORDS | {"agents", "backbones", "kernels"}
BELOW_RUN = AGENT_SIDE | TOOLS | {"data", "envs", "training", "evaluation"}
ARROWS: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "progress": WORDS,
    "provenance": WORDS,
    "report": WORDS,
    "kernels": {"errors"},
    "backbones": WORDS | {"kernels"},
    "data": WORDS,
    "envs": WORDS,
    "agents": AGENT_SIDE,
    "training": AGENT_SIDE | TOOLS,
    "evaluation": AGENT_SIDE | TOOLS | {"envs"},
    "config": BELOW_RUN,
    "recipes": BELOW_RUN | {"config"},
    "conformance": WORDS | {"backbones", "kernels"},
    "t_maze_data": WORDS | {"data", "envs"},
    "run": BELOW_RUN | {"config", "recipes", "conformance"},
    "collect": WORDS | TOOLS | {"data", "envs", "agents", "evaluation", "run"},
    "bench": AGENT_SIDE | TOOLS,
    "doctor": BELOW_RUN,
    "cli": BELOW_RUN | {"config", "recipes", "run", "conformance", "collect", "bench", "doctor"},
    "__main__": {"cli"},
    "__init__": BELOW_RUN | {"config", "recipes", "run", "conformance", "collect"},
}

# library, or module of rlseq -> the modules that may import it
NUMBA_CODE = r"rlseq\.kernels\.(\w+\.cpu|_numba)"
TRITON_CODE = r"rlseq\.kernels\.(\w+\.gpu|_triton)"
OWNERS: dict[str, str] = {
    "numba": NUMBA_CODE,
    "llvmlite": NUMBA_CODE,
    "rlseq.kernels._numba": NUMBA_CODE,
    "triton": TRITON_CODE,
    "rlseq.kernels._triton": TRITON_CODE,
    "minari": r"rlseq\.data\.\w+",
    "h5py": r"rlseq\.data\.\w+",
    "mujoco": r"rlseq\.envs(\.\w+)?",
    "popgym": r"rlseq\.envs(\.\w+)?",
    "stable_baselines3": r"rlseq\.collect\._policies",
    "tensorboard": r"rlseq\.training\.\w+",
    "torch.utils.tensorboard": r"rlseq\.training\.\w+",
    "tyro": r"rlseq\.(config|recipes|run|cli)(\.\w+)?",
}
KERNEL_LIBRARIES = {"torch", "numpy", "numba", "llvmlite", "triton"}
HEAVY = ("triton", "minari", "mujoco", "tensorboard", "numba")

STAGES = {
    "data/minari_source.py": 1,
    "data/d4rl_source.py": 1,
    "data/trajectories.py": 2,
    "data/windows.py": 3,
    "agents/tokens.py": 4,
    "agents/heads.py": 6,
    "evaluation/rollout.py": 7,
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def _unit(module: str) -> str:
    return module.split(".")[1]


def _leading_text(node: ast.expr) -> str | None:
    """The constant text that a string or an f-string starts with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _imports(module: str, source: str, is_package: bool) -> list[str]:
    """Every dotted name that a module imports, at any depth, `import_module("…")` and relative ones included."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = _leading_text(node.args[0])
            if function in {"import_module", "__import__"} and text:
                names.append(text)
    return names


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Every arrow of the architecture that a module's imports break, one line each."""
    unit = _unit(module)
    if unit not in ARROWS:
        return [f"{module}: no layer is stated for it; add it to ARROWS with what it may import"]
    found = []
    for name in _imports(module, source, is_package):
        top = name.split(".")[0]
        for library, owner in OWNERS.items():
            if (name == library or name.startswith(f"{library}.")) and not re.fullmatch(owner, module):
                found.append(f"{module}: imports {name}; only {owner} may")
        if top == "rlseq":
            target = name.split(".")[1] if "." in name else ""
            if target not in ARROWS[unit] | {unit, "__version__"}:
                found.append(f"{module}: imports {name}; {unit} may import {sorted(ARROWS[unit])}")
        if unit == "kernels" and top != "rlseq" and top not in KERNEL_LIBRARIES | sys.stdlib_module_names:
            found.append(f"{module}: imports {name}; kernels import torch and errors only")
    return found


def _package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def _run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_only_point_down():
    found = [
        line
        for path in _package_files()
        for line in violations(
            _module_name(path), path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py"
        )
    ]
    assert not found, "\n".join(found)


def test_the_arrows_themselves_have_no_cycle():
    seen: set[str] = set()
    left = {unit: set(below) - {unit} for unit, below in ARROWS.items()}
    while left:
        free = [unit for unit, below in left.items() if below <= seen]
        assert free, f"these units import each other: {sorted(left)}"
        seen.update(free)
        for unit in free:
            del left[unit]


@pytest.mark.parametrize(
    ("module", "source", "breaks"),
    [
        ("rlseq.data.windows", "from rlseq.agents.tokens import tokens", "rlseq.agents.tokens.tokens"),
        ("rlseq.data.windows", "from rlseq.envs import make", "rlseq.envs.make"),
        ("rlseq.envs.memory", "import rlseq.data", "rlseq.data"),
        ("rlseq.backbones.hawk", "def f():\n    from rlseq import agents", "rlseq.agents"),
        ("rlseq.backbones.hawk", "from ..data import windows", "rlseq.data.windows"),
        ("rlseq.backbones.hawk", "import importlib\nimportlib.import_module('rlseq.training.loop')", "rlseq.training"),
        ("rlseq.backbones.hawk", "from importlib import import_module\nimport_module(f'rlseq.run.{x}')", "rlseq.run"),
        ("rlseq.training.loop", "from rlseq.data import open_dataset", "rlseq.data"),
        ("rlseq.training.loop", "from rlseq.evaluation import evaluate", "rlseq.evaluation"),
        ("rlseq.evaluation.rollout", "from rlseq.training import loop", "rlseq.training"),
        ("rlseq.agents.policy", "import rlseq", "imports rlseq;"),
        ("rlseq.config", "from rlseq.run import train", "rlseq.run"),
        ("rlseq.run", "from rlseq.cli import main", "rlseq.cli"),
        ("rlseq.__main__", "from rlseq.run import train", "rlseq.run"),
        ("rlseq.kernels._dispatch", "from rlseq.types import Batch", "rlseq.types"),
        ("rlseq.kernels._dispatch", "import gymnasium", "torch and errors only"),
        ("rlseq.kernels._dispatch", "import numba", "numba"),
        ("rlseq.kernels.linear_scan.reference", "import triton.language as tl", "triton"),
        ("rlseq.kernels.linear_scan", "from rlseq.kernels._numba import compiled", "rlseq.kernels._numba"),
        ("rlseq.kernels.linear_scan.cpu", "from rlseq.kernels import _triton", "rlseq.kernels._triton"),
        ("rlseq.agents.heads", "import minari", "minari"),
        ("rlseq.run", "from torch.utils.tensorboard import SummaryWriter", "torch.utils.tensorboard"),
        ("rlseq.helpers", "", "no layer"),
    ],
)
def test_the_checker_finds_a_broken_arrow(module: str, source: str, breaks: str):
    found = violations(module, source)
    assert found
    assert breaks in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlseq.agents.policy", "from rlseq.backbones import build\nfrom rlseq.types import Batch"),
        ("rlseq.training.checkpoint", "from rlseq import __version__"),
        ("rlseq.kernels.linear_scan.cpu", "import numba\nimport numpy\nfrom rlseq.errors import KernelError"),
        ("rlseq.backbones.hawk", "from ._stack import Stack\nfrom rlseq.kernels import rg_lru"),
        ("rlseq.run", "from rlseq.data import open_dataset\nfrom rlseq.evaluation import evaluate"),
    ],
)
def test_the_checker_lets_a_downward_import_pass(module: str, source: str):
    assert violations(module, source) == []


def test_no_file_is_longer_than_the_cap():
    files = [path for folder in ("rlseq", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lengths) > 10
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_every_module_says_what_it_is():
    silent = [str(path.relative_to(ROOT)) for path in _package_files() if not _first_line(path).rstrip().endswith(".")]
    assert not silent, f"the first docstring line of a module is a sentence: {silent}"


@pytest.mark.parametrize(("name", "stage"), STAGES.items())
def test_a_stage_file_says_its_stage(name: str, stage: int):
    assert f"Stage {stage} of 7" in _first_line(PACKAGE / name)


def test_every_public_backbone_says_that_it_is_stage_5():
    backbones = [path for path in (PACKAGE / "backbones").glob("*.py") if not path.name.startswith("_")]
    assert backbones
    assert not [path.name for path in backbones if "Stage 5 of 7" not in _first_line(path)]


def test_no_other_file_claims_a_stage():
    stages = {PACKAGE / name for name in STAGES} | set((PACKAGE / "backbones").glob("[!_]*.py"))
    stages.add(PACKAGE / "backbones" / "__init__.py")
    claims = [path for path in _package_files() if re.search(r"Stage \d of 7", _first_line(path))]
    assert set(claims) <= stages


def test_importing_rlseq_loads_no_heavy_library():
    loaded = _run_python(f"import rlseq, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded == "[]"


def test_importing_every_layer_loads_no_heavy_library():
    layers = [f"rlseq.{unit}" for unit in ARROWS if unit not in {"__init__", "__main__"}]
    code = f"import {', '.join(layers)}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert _run_python(code) == "[]"


# The character classes keep these patterns from matching themselves.
FORBIDDEN = {
    "a path of one machine": rb"(?<![\w.~-])/(?:home|work|root|opt|Users|mnt)/[\w.]",
    "a registry's host": rb"pypi[.]org|pythonhosted[.]org|npmjs[.]org|deb[.]debian",
    "an issue's number": rb"(?i)\bissue #?[0-9]",
}


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", b"open('/" + b"home/me/data')"),
        ("a registry's host", b"https://pypi" + b".org/simple"),
        ("an issue's number", b"see issue" + b" #12"),
    ],
)
def test_the_search_for_forbidden_text_finds_it(what: str, text: bytes):
    assert re.search(FORBIDDEN[what], text)


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout")
@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_of_the_repository_mentions(what: str):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    files = [path for path in files if path.is_file()]
    assert len(files) > 10
    hits = {
        str(path.relative_to(ROOT)): match.group()
        for path in files
        if (match := re.search(FORBIDDEN[what], path.read_bytes()))
    }
    assert not hits
