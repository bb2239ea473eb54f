from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

import rlseq
from rlseq.agents import Agent, DecisionTransformer, Policy
from rlseq.errors import ConfigError, RunError, ShapeError, UnknownNameError
from rlseq.kernels import ChunkState
from tests.scripts import load
from tests.toys import OBS_SIZE, toy_agent, toy_store

soak, runs = load("soak"), load("soak_runs")
played = runs.played

ROWS, STEPS = 5, 40
SAME = soak.SAME
EXAMPLE = Path(__file__).parents[2] / "examples" / "act_from_onnx.py"
# every backbone is in tests/test_soak.py, which compares with lone runs
ONNX = [
    ("hawk-joint-previous", "recurrent"),
    ("hawk-interleaved", "recurrent"),
    ("hawk-joint", "window"),
    ("transformer-joint", "window"),
    ("hawk-discrete", "recurrent"),
]
COMPILED = [("transformer-joint", "window"), ("hawk-discrete", "recurrent")]


@cache
def agent_of(kind: str) -> Agent:
    torch.manual_seed(0)
    discrete = kind.endswith("-discrete")
    store = toy_store(discrete=discrete)
    return toy_agent(kind.replace("-discrete", "-joint"), store, window=4, depth=1)


def scenario(steps: int = STEPS, rows: int = ROWS) -> list[Any]:
    return runs.scenario(toy_store(), rows, steps, longest=20, seed=3)


@cache
def onnx_policy(kind: str, mode: str) -> Policy:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return agent_of(kind).policy(ROWS, mode=mode, engine="onnx")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    assert agent_of("hawk-joint").export(path, facts={"note": "mine"}) < SAME
    return path


@pytest.mark.parametrize(("kind", "mode"), ONNX)
def test_an_onnx_graph_acts_as_pytorch_does(kind: str, mode: str) -> None:
    policy = onnx_policy(kind, mode)
    policy.state = policy.initial_state()
    expected = agent_of(kind).policy(ROWS, mode=mode)
    np.testing.assert_allclose(played(policy, scenario()), played(expected, scenario()), atol=SAME)
    mine, theirs = policy.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    for name, array in mine.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_allclose(array, theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("kind", "mode"), COMPILED)
def test_a_compiled_step_acts_as_pytorch_does(kind: str, mode: str) -> None:
    agent = agent_of(kind)
    before = counters["stats"]["unique_graphs"]
    compiled, eager = agent.policy(ROWS, mode=mode, engine="compiled"), agent.policy(ROWS, mode=mode)
    np.testing.assert_allclose(played(compiled, scenario()), played(eager, scenario()), atol=SAME)
    for policy in (compiled, eager):
        policy.reset([1])
        policy.load_state_dict(policy.state_dict())
    np.testing.assert_allclose(played(compiled, scenario()), played(eager, scenario()), atol=SAME)
    assert counters["stats"]["unique_graphs"] == before + 1  # a compilation in the middle of acting is a stall


@torch._dynamo.config.patch(recompile_limit=1)  # monkeypatch would leave the setting deleted
def test_as_many_compiled_policies_as_one_likes() -> None:
    agent = agent_of("hawk-joint")
    for rows in (2, 3, 4):
        policies = [agent.policy(rows, engine=engine) for engine in ("compiled", "eager")]
        actions = [played(policy, scenario(5, rows)) for policy in policies]
        np.testing.assert_allclose(*actions, atol=SAME)


@pytest.mark.parametrize("first", ["eager", "onnx"])
@pytest.mark.parametrize("second", ["eager", "onnx"])
def test_another_policy_goes_on_from_a_state_dict_exactly(first: str, second: str) -> None:
    agent, steps = agent_of("hawk-joint-previous"), scenario()

    def fresh(engine: str) -> Policy:
        if engine == "eager":
            return agent.policy(ROWS, target_return=1.5)
        policy = onnx_policy("hawk-joint-previous", "recurrent")
        policy.target_return, policy.state = np.full(ROWS, 1.5), policy.initial_state()
        return policy

    whole = played(fresh(second), steps)
    begun = fresh(first)
    head = played(begun, steps[:17])
    kept = begun.state_dict()
    other = agent.policy(ROWS, target_return=-3.0) if second == "eager" else fresh("onnx")
    other.load_state_dict(kept)
    tail = played(other, steps[17:])
    if first == second:
        np.testing.assert_array_equal(np.concatenate([head, tail]), whole)
    np.testing.assert_allclose(np.concatenate([head, tail]), whole, atol=SAME)


def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    policy = agent_of("hawk-joint").policy(2)
    policy.act(np.ones((2, OBS_SIZE)))
    state, good = policy.state, policy.state_dict()
    for bad, message in (
        (agent_of("hawk-joint").policy(3).state_dict(), "This policy has 2 rows"),
        (agent_of("gau-joint").policy(2).state_dict(), "this agent and mode"),
        ({**good, "timestep": good["timestep"].astype(float)}, "timestep must be"),
    ):
        with pytest.raises(ShapeError, match=message):
            policy.load_state_dict(bad)
    assert policy.state is state


@pytest.mark.parametrize("engine", ["eager", "onnx"])
def test_predict_is_pure_whatever_the_engine(engine: str) -> None:
    kind = "hawk-joint-previous"
    policy = agent_of(kind).policy(ROWS) if engine == "eager" else onnx_policy(kind, "recurrent")
    policy.state = policy.initial_state()
    steps = scenario()
    played(policy, steps[:5])
    before = policy.state_dict()
    obs, reward, start = steps[5]
    first, state = policy.predict(obs, policy.state, reward, start)
    policy.predict(-obs, policy.state, reward, start)
    again, _ = policy.predict(obs, policy.state, reward, start)
    np.testing.assert_array_equal(first, again)
    for name, array in policy.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    acted = policy.act(obs, reward, start)
    np.testing.assert_array_equal(first, acted)
    for array, other in zip(policy.engine.arrays(state), policy.engine.arrays(policy.state), strict=True):
        np.testing.assert_array_equal(array, other)


@cache
def of_ring(backbone: str) -> Agent:
    """An agent whose layers keep rings that the scenario goes round several times."""
    torch.manual_seed(0)
    ring = {"chunk": 3} if backbone == "flash" else {"window": 5}
    sizes = {"width": 16, "depth": 3 if backbone == "griffin" else 2, **ring}
    return DecisionTransformer.for_data(
        toy_store(), backbone, window=4, tokens="joint", timestep_embedding=False, backbone_options=sizes
    ).eval()


@cache
def ring_policy(backbone: str) -> Policy:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return of_ring(backbone).policy(ROWS, engine="onnx")


RINGS = ("flash", "gau", "transformer", "griffin")


@pytest.mark.parametrize("backbone", RINGS)
def test_the_onnx_engine_writes_its_own_rings_in_place_and_no_state_that_was_read(backbone: str) -> None:
    engine: Any = ring_policy(backbone).engine
    policy = Policy(engine, ROWS, target_return=None)
    rings = {name for name in engine.names if name.split(".")[-1] in (*ChunkState._fields[:4], "key", "value")}
    assert set(engine.facts["in_place"]) == rings
    policy.state = engine.initial_state()
    expected, pure, kept = of_ring(backbone).policy(ROWS), engine.initial_state(), []
    for number, step in enumerate(scenario()):
        if number % 7 == 3:
            kept.append((policy.state, engine.arrays(policy.state)))
        action, (other, pure) = policy.act(*step), policy.predict(step[0], pure, *step[1:])
        np.testing.assert_array_equal(action, other)
        np.testing.assert_allclose(action, expected.act(*step), atol=SAME)
    for state, before in (*kept, (pure, engine.arrays(policy.state))):
        for array, copy in zip(engine.arrays(state), before, strict=True):
            np.testing.assert_array_equal(array, copy)
    # the first act leaves what was read alone, the second moves in, the third goes on in the same memory
    memories = [policy.act(*scenario()[-1]) is not None and policy._state.memory for _ in range(3)]
    same = [one is other for one, other in zip(memories[2], memories[1], strict=True)]
    assert sum(same) == len(rings)
    assert not any(one is other for one, other in zip(memories[1], memories[0], strict=True))


class Interrupted:
    """A session after whose next run a key is pressed."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run_with_iobinding(self, binding: Any) -> None:
        self.session.run_with_iobinding(binding)
        raise KeyboardInterrupt


@pytest.mark.parametrize("backbone", ["flash", "hawk"])
def test_a_step_that_is_interrupted_is_as_if_it_had_not_been_or_the_policy_says_so(backbone: str) -> None:
    if backbone == "hawk":
        engine, agent = onnx_policy("hawk-joint-previous", "recurrent").engine, agent_of("hawk-joint-previous")
    else:
        engine, agent = ring_policy(backbone).engine, of_ring(backbone)
    policy, eager, steps = Policy(engine, ROWS, target_return=None), agent.policy(ROWS), scenario()
    np.testing.assert_allclose(played(policy, steps[:5]), played(eager, steps[:5]), atol=SAME)
    buffers: Any = policy.engine._buffers  # type: ignore[attr-defined]
    buffers._session = Interrupted(buffers._session)
    with pytest.raises(KeyboardInterrupt):
        policy.act(*steps[5])
    buffers._session = buffers._session.session
    if backbone == "hawk":
        np.testing.assert_allclose(played(policy, steps[5:]), played(eager, steps[5:]), atol=SAME)
        return
    for use in (lambda: policy.act(*steps[5]), policy.state_dict, lambda: policy.state, lambda: policy.reset([0])):
        with pytest.raises(RunError, match="one that was interrupted"):
            use()
    policy.reset()
    eager.reset()
    np.testing.assert_allclose(played(policy, steps[5:]), played(eager, steps[5:]), atol=SAME)


def test_the_memory_of_the_onnx_engine_is_the_policys_own_whatever_is_done_between_two_acts() -> None:
    engine, eager = onnx_policy("hawk-joint-previous", "recurrent").engine, agent_of("hawk-joint-previous").policy(ROWS)
    policy, rng, held = Policy(engine, ROWS, target_return=None), np.random.default_rng(0), []
    for step in scenario(200):
        np.testing.assert_allclose(policy.act(*step), eager.act(*step), atol=SAME)
        match rng.integers(8):
            case 0:
                held.append((policy.state, policy.state_dict()))
            case 1:
                policy.state = held[-1][0] if held and rng.random() < 0.3 else policy.state
                eager.load_state_dict(policy.state_dict())
            case 2:
                policy.reset([1, 3])
                eager.reset([1, 3])
            case 3:
                policy.load_state_dict(policy.state_dict())
            case 4:
                policy.predict(-step[0], policy.state, *step[1:])
    assert len(held) > 5
    for state, before in held:
        for array, name in zip(engine.arrays(state), engine.names, strict=True):
            np.testing.assert_array_equal(array, before[name])


def test_two_policies_may_share_an_engine() -> None:
    engine = onnx_policy("hawk-joint-previous", "recurrent").engine
    one, other = Policy(engine, ROWS, target_return=None), Policy(engine, ROWS, target_return=None)
    alone = played(agent_of("hawk-joint-previous").policy(ROWS), scenario())
    steps = scenario()
    both = [(one.act(*step), other.act(-step[0], *step[1:])) for step in steps]
    np.testing.assert_allclose(np.stack([action for action, _ in both]), alone, atol=SAME)


@pytest.mark.parametrize("engine", ["eager", "onnx"])
@pytest.mark.parametrize("backbone", RINGS)
def test_a_row_that_starts_forgets_a_memory_of_nan(backbone: str, engine: str) -> None:
    policy = ring_policy(backbone) if engine == "onnx" else of_ring(backbone).policy(ROWS)
    policy.state = policy.initial_state()
    played(policy, scenario(17))
    good, late = policy.state_dict(), np.array([True] + [False] * (ROWS - 1))
    steps = [(obs, reward, late & (number == 0)) for number, (obs, reward, _) in enumerate(scenario(9))]
    expected = played(policy, steps)
    for wild in (np.nan, np.inf, 1e3):
        spoiled = {name: array.copy() for name, array in good.items()}
        for name, array in spoiled.items():
            if name.startswith("memory.") and array.dtype.kind == "f":
                array[0] = wild
        policy.load_state_dict(spoiled)
        np.testing.assert_array_equal(played(policy, steps), expected)


def test_a_file_acts_with_any_number_of_rows_and_keeps_its_facts(file: Path) -> None:
    for rows in (1, 7):
        policy = rlseq.load_policy(file, rows, target_return=2.0)
        expected = agent_of("hawk-joint").policy(rows, target_return=2.0)
        steps = scenario(rows=rows)
        np.testing.assert_allclose(played(policy, steps), played(expected, steps), atol=SAME)
        assert policy.state_bytes == expected.state_bytes
        policy.reset([0])
        expected.reset([0])
        obs = np.ones((rows, OBS_SIZE))
        np.testing.assert_allclose(policy.act(obs, np.ones(rows)), expected.act(obs, np.ones(rows)), atol=SAME)
        assert policy.engine.facts["note"] == "mine"


def test_the_example_acts_with_onnxruntime_and_numpy_alone(file: Path) -> None:
    without = "import sys; sys.modules['torch'] = sys.modules['rlseq'] = None\n"
    replay = (
        "import json, runpy\n"
        f"Actor = runpy.run_path({str(EXAMPLE)!r})['Actor']\n"
        f"actor = Actor({str(file)!r})\n"
        "steps = json.load(sys.stdin)\n"
        "print(json.dumps([actor.act(o[0], r[0], s[0]).tolist() for o, r, s in steps]))\n"
    )
    steps = scenario(rows=1)
    fed = json.dumps([[part.tolist() for part in step] for step in steps])
    done = subprocess.run(
        [sys.executable, "-c", without + replay], input=fed, capture_output=True, text=True, check=True
    )
    expected = played(agent_of("hawk-joint").policy(1), steps)[:, 0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=SAME)
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


def test_files_that_are_not_of_this_format_are_one_clear_error(file: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load(file)
    entry = next(entry for entry in model.metadata_props if entry.key == "rlseq")
    entry.value = json.dumps({**json.loads(entry.value), "format": 99})
    onnx.save(model, tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    for name, message in (
        ("newer", "must be of format 1, got 99"),
        ("other", "without its metadata"),
        ("text", "must be an ONNX file"),
        ("absent", "must be a file"),
    ):
        with pytest.raises(RunError, match=message):
            rlseq.load_policy(tmp_path / f"{name}.onnx")
    with pytest.raises(ConfigError, match="num_envs must be at least 1"):
        rlseq.load_policy(file, 0)


def test_an_export_leaves_a_whole_file_or_none(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    agent = agent_of("hawk-joint")
    with pytest.raises(RunError, match="must not exist yet"):
        agent.export(file)
    with pytest.raises(RunError, match="a folder that exists"):
        agent.export(tmp_path / "no" / "policy.onnx")
    monkeypatch.setattr("rlseq.agents.engines.onnx.graph", lambda step, facts: before)
    monkeypatch.setattr("rlseq.agents.engines.onnx.largest_difference", lambda step, model: float("nan"))
    with pytest.raises(ConfigError, match="must act as PyTorch does"):
        agent.export(tmp_path / "policy.onnx")
    monkeypatch.setattr("rlseq.agents.engines.onnx.largest_difference", lambda step, model: 0.0)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        agent.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
    assert file.read_bytes() == before


def test_an_unknown_engine_is_named_with_the_list() -> None:
    with pytest.raises(UnknownNameError, match="compiled, eager, onnx"):
        agent_of("hawk-joint").policy(1, engine="onxx")


@pytest.mark.parametrize("mode", ["recurrent", "window"])
def test_one_environment_needs_no_row_axis(mode: str) -> None:
    agent = agent_of("hawk-joint")
    lone, rows = agent.policy(1, mode=mode), agent.policy(1, mode=mode)
    for obs, reward, start in scenario(10, rows=1):
        action = lone.act(obs[0], float(reward[0]), bool(start[0]))
        np.testing.assert_array_equal(action, rows.act(obs, reward, start)[0])
    assert agent_of("hawk-discrete").policy(1).act(np.ones(OBS_SIZE)).shape == ()
