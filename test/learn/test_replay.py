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

from dpg_robot.learn.replay import Batch, Replay


def transitions(*numbers):
    """Return transitions that can be told apart in every element."""
    n = torch.tensor(numbers, dtype=torch.float32)
    return Batch(obs=torch.stack([n, n + 0.1], -1), action=-n[:, None], reward=10 * n,
                 next_obs=torch.stack([n + 1, n + 1.1], -1), terminated=n % 2)


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
    assert [len(values) for values in state['data']] == [3] * 5
    replay.data.reward.zero_()
    assert state['data'][2].tolist() == [10, 20, 30]
