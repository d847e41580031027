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

"""What is collected is what happened."""

import numpy as np
import pytest
import torch

from dpg_robot.bench.cache import cached
from dpg_robot.bench.collect import collect, collector_config
from dpg_robot.bench.truth import measure_truth
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import load_config
from dpg_robot.learn.outcome import one_step_target
from dpg_robot.sim.world import make_world

SMALL = ('learner.hidden=[16]', 'learner.batch_size=16', 'trainer.warmup_steps=100')
NUM_TRANSITIONS = 160


@pytest.fixture(scope='module')
def config():
    """Return a training on the reacher, whose episodes of 50 steps end twice here."""
    task = load_config('reacher', [*SMALL, 'world.dead_actuators=1', 'trainer.num_worlds=1'])
    return collector_config(task, NUM_TRANSITIONS, 3)


@pytest.fixture(scope='module')
def collection(config):
    return collect(config)


def test_the_collector_is_a_critic_with_an_even_number_of_worlds(config):
    assert config.learner.estimator == 'critic'
    assert config.learner.hidden == (16,)
    assert config.trainer.num_worlds == 2
    assert config.trainer.env_steps == 2 * NUM_TRANSITIONS
    assert config.trainer.seed == 3


def test_every_kept_state_leads_to_its_transition(config, collection):
    """Stepping the task with the executed action gives the stored outcome, to float32."""
    data, rows = collection.data, collection.rows.tolist()
    assert len(rows) == len(set(rows)) == 240  # all of the last three quarters
    assert min(rows) == 80
    world = make_world(config.world)
    world.reset(seed=0)
    for state, row in zip(collection.states, rows):
        world.env.state = state
        obs, reward, *_ = world.env.step(collection.executed[row].double().numpy())
        np.testing.assert_allclose(obs, data.next_obs[row].numpy(), atol=1e-4)
        assert reward == pytest.approx(float(data.reward[row]), abs=1e-4)


def test_the_executed_action_is_known_at_every_step(collection):
    """Also where an episode ended: the command plus noise, clipped."""
    difference = collection.executed - collection.data.action
    assert len(difference) == 2 * NUM_TRANSITIONS
    assert difference.isfinite().all()
    assert collection.executed.abs().max() <= 1
    unclipped = difference[collection.executed.abs() < 1]
    assert float(unclipped.std()) == pytest.approx(0.2, rel=0.15)


def test_replicas_are_disjoint_and_newest_first_in_choice(collection):
    half = NUM_TRANSITIONS // 2
    for which in (0, 1):
        batch = collection.replica(which, half)
        assert batch.obs.shape == (half, 8)
        np.testing.assert_array_equal(batch.reward, collection.data.reward[which::2][-half:])
        # One world's transitions, in order, with an end every 50 steps.
        follows = (batch.next_obs[:-1] == batch.obs[1:]).all(1)
        assert (~follows).sum() in (1, 2)
    first, second = (collection.replica(which, NUM_TRANSITIONS) for which in (0, 1))
    assert not (first.obs[:, None, :] == second.obs[None]).all(-1).any()


def test_the_target_is_that_of_the_final_value(config, collection):
    policy, value = collection.networks(config)
    data = collection.data
    again = one_step_target(config.learner, policy.norm, value, data.reward, data.next_obs,
                            data.terminated)
    torch.testing.assert_close(again, collection.target)
    ended = one_step_target(config.learner, policy.norm, value, data.reward, data.next_obs,
                            torch.ones_like(data.terminated))
    torch.testing.assert_close(ended, config.learner.reward_scale * data.reward)
    assert not [p for p in (*policy.parameters(), *value.parameters()) if p.requires_grad]


def test_the_truth_of_a_dead_actuator_is_zero_within_its_error(config, collection):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    truth = measure_truth(config, collection, num_states=6, num_pairs=100, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert truth.obs.shape == (6, 8) and truth.gradient.shape == truth.action.shape == (6, 3)
    assert truth.action.abs().max() < 1
    dead, live = truth.gradient[:, 2].norm(), truth.gradient[:, :2].norm()
    assert dead < 3 * truth.error.norm() < live
    again = measure_truth(config, collection, num_states=6, num_pairs=100, seed=0)
    assert torch.equal(again.gradient, truth.gradient)


def test_more_states_than_kept_are_refused(config, collection):
    with pytest.raises(SpecError, match='states must be at most the 240 that were kept, got 241'):
        measure_truth(config, collection, 241, 100, 0)


@pytest.mark.parametrize('override, message', [
    ('world.noise.command_latency_s=0.02', r'command_latency_s must be 0 .* got 0.02'),
    ('world.noise.observation={joint_position: 0.1}', r'observation must be \{\} .*0\.1')])
def test_a_world_whose_truth_cannot_be_measured_is_refused(override, message):
    with pytest.raises(SpecError, match=message):
        collector_config(load_config('reacher', [override]), 100, 0)


@pytest.mark.parametrize('override, limits', [
    ('world.robot.control=position', r'joint_position must be null .*: .* got \[1\.5, 1\.5'),
    ('world.robot.acceleration_limit=[5.0]', r'joint_velocity must be null .* got \[5\.0, 5\.0')])
def test_a_robot_whose_commands_are_limited_is_refused(override, limits):
    """The truth is measured below the limits, and what a command does depends on the last."""
    with pytest.raises(SpecError, match=f'^rate_limit of the action term {limits}'):
        collector_config(load_config('six_axis_reach', [override]), 100, 0)
    assert collector_config(load_config('six_axis_reach'), 100, 0).trainer.num_worlds == 4


def test_a_stored_collection_is_the_same(config, collection, tmp_path):
    path = tmp_path / 'deep' / 'collection.pt'
    cached(path, lambda: collection)
    stored = cached(path, lambda: pytest.fail('collected twice'))
    for one, other in zip(stored.data, collection.data):
        assert torch.equal(one, other)
    assert len(stored.states) == len(collection.states)
    for one, other in zip(stored.networks(config), collection.networks(config)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_what_another_benchmark_has_begun_to_store_is_no_hindrance(tmp_path):
    path = tmp_path / 'part.pt'
    other = tmp_path / 'part.pt.partial'
    other.mkdir()  # unlike a file, it cannot be written over
    assert cached(path, lambda: 1) == 1 == cached(path, lambda: pytest.fail('made twice'))
    assert set(tmp_path.iterdir()) == {path, other}
