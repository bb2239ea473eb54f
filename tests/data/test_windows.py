"""Stage 3: batches hold the raw arrays' rows, in the three regimes, and resume exactly."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlseq.data import SamplerConfig, TrajectoryStore, make_sampler, open_dataset
from rlseq.errors import ConfigError, UnknownNameError
from rlseq.types import Batch, Trajectory

REGIMES = ("window", "stream", "pack")
NAMES = tuple(field.name for field in fields(Batch))
LENGTHS = [9, 1, 4, 12, 7, 12, 3]


def _numbered(lengths: list[int]) -> TrajectoryStore:
    """A store whose obs is the flat row number, so that a batch tells where each of its steps comes from."""
    steps = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    return TrajectoryStore.from_trajectories(
        Trajectory(row[:, None], -row[:, None] / 1e3, np.sin(row.astype(float)), True, False) for row in steps
    )


def _equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in NAMES)


def _check_rows(store: TrajectoryStore, batch: Batch) -> None:
    """Every real step equals the store's row that its obs names, field by field; every padded one is zero."""
    mask = batch.mask.numpy()
    rows = batch.obs[..., 0].numpy().astype(int)[mask]
    for name in ("obs", "action", "return_to_go", "timestep"):
        assert np.array_equal(getattr(batch, name).numpy()[mask], getattr(store, name)[rows]), name
    assert np.array_equal(batch.reward.numpy()[mask], store.reward[rows].astype(np.float32))
    assert np.array_equal(batch.reset.numpy()[mask], np.isin(rows, store.offsets[:-1]))
    for name in NAMES:
        assert not getattr(batch, name).numpy()[~mask].any(), name
    assert (mask[:, 1:] <= mask[:, :-1]).all(), "padding is on the right"


def _config(regime: str, window: int = 12, batch_size: int = 3) -> SamplerConfig:
    return SamplerConfig(regime, window, batch_size)


@pytest.mark.parametrize("regime", REGIMES)
def test_shapes_and_dtypes_are_those_of_batch(regime):
    batch = next(make_sampler(_numbered(LENGTHS), _config(regime)))
    assert batch.obs.shape == (3, 12, 1)
    assert batch.action.shape == (3, 12, 1)
    dtypes = {name: getattr(batch, name).dtype for name in NAMES}
    floats = dict.fromkeys(("obs", "action", "reward", "return_to_go"), torch.float32)
    assert dtypes == floats | {"timestep": torch.int64, "reset": torch.bool, "mask": torch.bool}
    assert all(getattr(batch, name).shape == (3, 12) for name in NAMES[2:])
    assert batch.to("cpu").obs is batch.obs


@settings(max_examples=40, deadline=None)
@given(
    regime=st.sampled_from(REGIMES),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    batch_size=st.integers(1, 5),
    extra=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_every_step_is_the_raw_arrays_row(regime, lengths, batch_size, extra, seed):
    store = _numbered(lengths)
    window = max(lengths) + extra if regime == "pack" else 1 + extra
    sampler = make_sampler(store, _config(regime, window, batch_size), seed)
    for _ in range(6):
        _check_rows(store, next(sampler))


def test_a_window_is_consecutive_steps_of_one_episode_up_to_its_end():
    store = _numbered(LENGTHS)
    sampler = make_sampler(store, _config("window", window=5, batch_size=200))
    batch = next(sampler)
    for row, mask in zip(batch.obs[..., 0].int().tolist(), batch.mask.tolist(), strict=True):
        start, end = row[0], store.offsets[np.searchsorted(store.offsets, row[0], side="right")]
        expected = list(range(start, min(start + 5, end)))
        assert row == expected + [0] * (5 - len(expected))
        assert sum(mask) == len(expected)


def test_windows_start_everywhere_with_equal_chance():
    store = _numbered([1, 3, 16])
    sampler = make_sampler(store, _config("window", window=2, batch_size=2000))
    starts = Counter(next(sampler).obs[:, 0, 0].int().tolist())
    assert sorted(starts) == list(range(20))
    # Binomial(2000, 1/20): mean 100, deviation 9.7; five deviations either way.
    assert all(52 <= count <= 148 for count in starts.values())


def test_a_window_by_hand_equals_the_raw_halfcheetah_arrays(shared_minari):
    import h5py

    store = open_dataset("minari:rlseq/halfcheetah/medium-replay-v0")
    batch = next(make_sampler(store, SamplerConfig("window", 20, 64), seed=3))
    with h5py.File(shared_minari / "rlseq/halfcheetah/medium-replay-v0/data/main_data.hdf5") as file:
        raw = [{k: file[f"episode_{i}"][k][()] for k in ("observations", "actions", "rewards")} for i in range(80)]
    first_obs = {episode["observations"][t].tobytes(): (i, t) for i, episode in enumerate(raw) for t in range(1000)}
    for b in range(64):
        i, t = first_obs[batch.obs[b, 0].numpy().tobytes()]
        n = min(20, 1000 - t)
        assert int(batch.mask[b].sum()) == n
        assert np.array_equal(batch.obs[b, :n].numpy(), raw[i]["observations"][t : t + n])
        assert np.array_equal(batch.action[b, :n].numpy(), raw[i]["actions"][t : t + n])
        assert np.array_equal(batch.reward[b, :n].numpy(), raw[i]["rewards"][t : t + n].astype(np.float32))
        assert batch.timestep[b, :n].tolist() == list(range(t, t + n))
        left, by_hand = raw[i]["rewards"].sum(), []
        for reward in raw[i]["rewards"]:
            by_hand.append(np.float32(left))
            left -= reward
        assert batch.return_to_go[b, :n].tolist() == by_hand[t : t + n]


def test_every_stream_row_is_whole_episodes_end_to_end():
    store = _numbered(LENGTHS)
    sampler = make_sampler(store, _config("stream", window=4, batch_size=3))
    batches = [next(sampler) for _ in range(60)]
    assert all(batch.mask.all() for batch in batches)
    starts = {int(s): int(n) for s, n in zip(store.offsets[:-1], store.lengths, strict=True)}
    for b in range(3):
        steps = np.concatenate([batch.obs[b, :, 0].numpy() for batch in batches]).astype(int).tolist()
        at = 0
        while at < len(steps):
            length = starts[steps[at]]
            assert steps[at : at + length] == list(range(steps[at], steps[at] + length))[: len(steps) - at]
            at += length


def test_a_stream_row_goes_on_where_it_stopped():
    sampler = make_sampler(_numbered([1000]), _config("stream", window=7, batch_size=2))
    before = next(sampler)
    for _ in range(100):
        after = next(sampler)
        continued = before.obs[:, -1, 0] + 1
        assert torch.equal(after.obs[:, 0, 0], continued) or after.reset[:, 0].all()
        before = after


@pytest.mark.parametrize("regime", ["stream", "pack"])
def test_every_epoch_uses_every_episode_once(regime):
    store = _numbered(LENGTHS)
    sampler = make_sampler(store, _config(regime, window=12, batch_size=1))
    drawn: list[int] = []
    draw = sampler._draw
    sampler._draw = lambda: drawn.append(draw()) or drawn[-1]
    seen: Counter[int] = Counter()
    for _ in range(100):
        batch = next(sampler)
        seen.update(batch.obs[..., 0][batch.reset].int().tolist())
    epochs = [drawn[i : i + 7] for i in range(0, len(drawn) - 6, 7)]
    assert len(epochs) > 5
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "the order changes"
    assert max(seen.values()) - min(seen[int(start)] for start in store.offsets[:-1]) <= 1


def test_a_stream_gives_episodes_to_the_row_with_the_least_left():
    sampler = make_sampler(_numbered([50, 1, 1, 1, 1, 1]), _config("stream", window=5, batch_size=2))
    for _ in range(500):
        next(sampler)
        left = [left - sampler._cursor for left in sampler._left]
        assert abs(left[0] - left[1]) <= 50


def test_packed_rows_are_whole_episodes_with_resets():
    store = _numbered(LENGTHS)
    sampler = make_sampler(store, _config("pack", window=14, batch_size=2))
    ends = {int(end) - 1 for end in store.offsets[1:]}
    for _ in range(30):
        batch = next(sampler)
        for row, reset, mask in zip(batch.obs[..., 0].int(), batch.reset, batch.mask, strict=True):
            real = row[mask].tolist()
            assert bool(reset[0])
            assert real[-1] in ends
            for before, step, starts in zip(real, real[1:], reset[mask].tolist()[1:], strict=False):
                assert step == before + 1 if not starts else before in ends


def test_packing_wastes_little_room(shared_data):
    store = open_dataset(shared_data / "d4rl/hopper_medium_replay-v0.hdf5")
    sampler = make_sampler(store, SamplerConfig("pack", 1000, 4))
    filled = np.mean([next(sampler).mask.double().mean() for _ in range(20)])
    assert filled > 0.9


def test_pack_refuses_a_window_shorter_than_an_episode():
    with pytest.raises(ConfigError, match="at least the longest episode, 12 steps, got 11.*window or stream"):
        make_sampler(_numbered(LENGTHS), _config("pack", window=11))


@pytest.mark.parametrize("regime", REGIMES)
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(regime):
    store = _numbered(LENGTHS)
    one, same, other = (make_sampler(store, _config(regime), seed) for seed in (5, 5, 6))
    batches = [(next(one), next(same), next(other)) for _ in range(20)]
    assert all(_equal(a, b) for a, b, _ in batches)
    assert not all(_equal(a, c) for a, _, c in batches)


@settings(max_examples=40, deadline=None)
@given(
    regime=st.sampled_from(REGIMES),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    before=st.integers(0, 60),
    batch_size=st.integers(1, 4),
    window=st.integers(1, 4),
)
def test_a_sampler_resumes_exactly_at_the_next_batch(regime, lengths, before, batch_size, window):
    store = _numbered(lengths)
    config = _config(regime, 12 if regime == "pack" else window, batch_size)
    sampler = make_sampler(store, config, seed=1)
    for _ in range(before):
        next(sampler)
    buffer = io.BytesIO()
    torch.save(sampler.state_dict(), buffer)
    expected = [next(sampler) for _ in range(40)]
    buffer.seek(0)
    resumed = make_sampler(store, config, seed=2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(_equal(next(resumed), batch) for batch in expected)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_state_is_a_copy_and_can_be_loaded_twice(regime):
    sampler = make_sampler(_numbered(LENGTHS), _config(regime))
    next(sampler)
    state = sampler.state_dict()
    first = [next(sampler) for _ in range(20)]
    for _ in range(2):
        sampler.load_state_dict(state)
        assert all(_equal(next(sampler), batch) for batch in first)


def test_a_state_of_other_options_or_data_is_refused():
    state = make_sampler(_numbered(LENGTHS), _config("stream")).state_dict()
    for lengths, config in ((LENGTHS, _config("window")), (LENGTHS, _config("stream", 5)), ([3], _config("stream"))):
        with pytest.raises(ConfigError, match="load_state_dict: the state must be of a sampler for"):
            make_sampler(_numbered(lengths), config).load_state_dict(state)


@pytest.mark.parametrize("options", [{"window": 0}, {"batch_size": 0}, {"window": 2.5}, {"batch_size": "8"}])
def test_an_option_outside_its_range_is_refused(options):
    with pytest.raises(ConfigError, match="must be an integer >= 1"):
        SamplerConfig(**options)


def test_an_unknown_regime_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'stream'"):
        SamplerConfig(regime="streams")


@pytest.mark.parametrize("regime", REGIMES)
def test_batches_of_a_mapped_store_are_those_of_one_in_memory(make_trajectories, regime):
    source = make_trajectories(LENGTHS)
    samplers = [
        make_sampler(TrajectoryStore.from_trajectories(source, memory_limit=limit), _config(regime))
        for limit in (None, 0)
    ]
    for _ in range(5):
        assert _equal(next(samplers[0]), next(samplers[1]))
    next(samplers[1]).obs.add_(1)  # a batch is the caller's own, not the read-only file
