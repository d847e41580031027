# Copyright 2026 The dpg_robot Authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import pytest
import torch

from dpg_robot.learn.replay import Batch, hold_out, Replay, RUN


def transitions(*numbers):
    """Return transitions that can be told apart in every element."""
    n = torch.tensor(numbers, dtype=torch.float32)
    return Batch(obs=torch.stack([n, n + 0.1], -1), action=-n[:, None], reward=10 * n,
                 next_obs=torch.stack([n + 1, n + 1.1], -1), terminated=n % 2,
                 held_out=torch.zeros(len(n)), log_prob=-0.5 * n)


def some_held_out(numbers, held_out):
    batch = transitions(*numbers)
    return batch._replace(held_out=torch.tensor([float(n in held_out) for n in numbers]))


def rewards(replay):
    return (replay.data.reward[:replay.size] / 10).tolist()


def test_ring_overwrites_the_oldest():
    replay = Replay(5, 2, 1)
    replay.add(transitions(1, 2, 3))
    assert (replay.size, replay.position) == (3, 3)
    replay.add(transitions(4, 5, 6, 7))
    assert (replay.size, replay.position) == (5, 2)
    assert rewards(replay) == [6, 7, 3, 4, 5]
    replay.add(transitions(8, 9, 10))
    assert (replay.size, replay.position) == (5, 0)
    assert rewards(replay) == [6, 7, 8, 9, 10]


def test_a_full_batch_replaces_everything():
    replay = Replay(3, 2, 1)
    replay.add(transitions(1, 2))
    replay.add(transitions(3, 4, 5))
    assert sorted(rewards(replay)) == [3, 4, 5]
    assert (replay.size, replay.position) == (3, 2)


def test_samples_keep_transitions_together_and_cover_the_filled_part_evenly():
    replay = Replay(100, 2, 1)
    replay.add(transitions(*range(1, 9)))
    num = 8000
    batch = replay.sample(num)
    expected = transitions(*(batch.reward / 10).tolist())
    for got, wanted in zip(batch, expected):
        torch.testing.assert_close(got, wanted)
    counts = torch.bincount((batch.reward / 10).long(), minlength=9)
    assert counts[0] == 0
    # Binomial: n p (1 - p), four standard deviations.
    assert ((counts[1:] - num / 8).abs() < 4 * (num / 8 * 7 / 8) ** 0.5).all()


def test_samples_are_copies():
    replay = Replay(4, 2, 1)
    replay.add(transitions(1, 2))
    batch = replay.sample(4)
    batch.obs.zero_()
    assert (replay.data.obs[:2] > 0).all()


@pytest.mark.parametrize('stored', [[(1, 2, 3)], [(1, 2, 3, 4)], [(1, 2, 3), (4, 5, 6)]])
def test_state_round_trip_continues_bit_identically(stored):
    replay, resumed = Replay(4, 2, 1), Replay(4, 2, 1)
    for numbers in stored:
        replay.add(transitions(*numbers))
    resumed.load_state_dict(replay.state_dict())
    batches = []
    for one in (replay, resumed):
        one.add(transitions(7, 8))
        torch.manual_seed(5)
        batches.append(one.sample(20))
    assert (resumed.size, resumed.position) == (replay.size, replay.position)
    for got, wanted in zip(batches[1], batches[0]):
        assert torch.equal(got, wanted)


def test_state_holds_the_filled_part_only_and_does_not_change_afterwards():
    replay = Replay(1000, 2, 1)
    replay.add(transitions(1, 2, 3))
    state = replay.state_dict()
    replay.add(transitions(4))
    assert [len(values) for values in state['data']] == [3] * 7
    replay.data.reward.zero_()
    assert state['data'][2].tolist() == [10, 20, 30]


def test_held_out_transitions_are_never_drawn_and_the_others_evenly():
    replay, num = Replay(20, 2, 1), 2000
    replay.add(some_held_out(range(1, 21), held_out=(7, 20)))
    drawn = (replay.sample(num).reward / 10).long()
    assert drawn.shape == (num,)
    assert set(drawn.tolist()) == set(range(1, 21)) - {7, 20}
    counts = drawn.unique(return_counts=True)[1]
    # Binomial: n p (1 - p), four standard deviations.
    assert ((counts - num / 18).abs() < 4 * (num / 18 * 17 / 18) ** 0.5).all()


@pytest.mark.parametrize('batches', [[range(1, 9)], [range(1, 9), range(9, 17)]])
def test_the_newest_are_not_drawn_where_they_shall_not_be(batches):
    replay, num = Replay(10, 2, 1), 2000  # which the second batch goes round
    for numbers in batches:
        replay.add(transitions(*numbers))
    newest = batches[-1][-1]
    assert (replay.newest(3).reward / 10).tolist() == [newest - 2, newest - 1, newest]
    drawn = (replay.sample(num, num_new=3).reward / 10).long()
    expected = range(newest + 1 - replay.size, newest - 2)
    assert set(drawn.tolist()) == set(expected)
    counts, share = drawn.unique(return_counts=True)[1], 1 / len(expected)
    # Binomial: n p (1 - p), four standard deviations.
    assert ((counts - num * share).abs() < 4 * (num * share * (1 - share)) ** 0.5).all()


def test_held_out_are_the_newest_of_them_also_after_a_round():
    replay = Replay(8, 2, 1)
    assert len(replay.held_out(3).reward) == 0
    replay.add(some_held_out(range(1, 7), held_out=(2, 4, 5)))
    assert (replay.held_out(10).reward / 10).tolist() == [2, 4, 5]
    assert (replay.held_out(2).reward / 10).tolist() == [4, 5]
    # 7 and 8 fill it, 9 to 11 overwrite 1 to 3.
    replay.add(some_held_out(range(7, 12), held_out=(8, 9, 11)))
    assert (replay.held_out(10).reward / 10).tolist() == [4, 5, 8, 9, 11]
    assert (replay.held_out(2).reward / 10).tolist() == [9, 11]


def test_each_so_many_th_run_is_held_out():
    held_out = hold_out(torch.arange(8 * RUN), 4).reshape(8, RUN)
    assert (held_out == held_out[:, :1]).all()
    assert held_out[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert held_out.dtype == torch.float32


def test_state_of_another_capacity_is_refused():
    replay = Replay(4, 2, 1)
    replay.add(transitions(1, 2, 3, 4))
    replay.add(transitions(5))
    for capacity in (9, 3):
        with pytest.raises(ValueError, match=f'^replay capacity must be 4, as when it was stored, '
                                             f'got {capacity}$'):
            Replay(capacity, 2, 1).load_state_dict(replay.state_dict())


def test_a_batch_larger_than_the_replay_is_refused():
    with pytest.raises(ValueError, match='replay capacity must be at least one batch, 3, got 2'):
        Replay(2, 2, 1).add(transitions(1, 2, 3))
