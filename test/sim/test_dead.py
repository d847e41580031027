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

"""Actuators that move nothing: present in the contract and the noise, absent in the physics."""

import numpy as np
import pytest

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import load, SpecError
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.tasks import TASKS
from dpg_robot.sim.world import make_world, WorldConfig


@pytest.mark.parametrize(
    'name', [name for name, entry in TASKS.items() if not entry.needs_robot])
def test_dead_actuators_change_nothing(name):
    alive = make_world(WorldConfig(name)).env
    world = make_world(WorldConfig(name, dead_actuators=3))
    spec, size = world.policy_spec, alive.policy_spec.action_dim
    assert spec.action[:-1] == alive.policy_spec.action and spec.action[-1].name == 'dead'
    assert world.action_space.shape == (spec.action_dim,) == (spec.eps_dim,) == (size + 3,)
    assert PolicySpec.from_json(spec.to_json()) == spec
    actions = np.random.default_rng(0).uniform(-1, 1, (6, size + 3))
    alive.reset(seed=1)
    world.reset(seed=1)
    state, seen = world.state, []
    for action in actions:
        obs, reward, *_, info = world.step(action)
        seen.append(obs)
        alive_obs, alive_reward, *_ = alive.step(action[:size])
        assert (obs == alive_obs).all() and reward == alive_reward
        np.testing.assert_array_equal(info['executed_action'], action)
    world.state = state
    np.testing.assert_array_equal([world.step(a)[0] for a in actions], seen)


def test_the_noise_acts_on_dead_actuators_too():
    world = make_world(WorldConfig('hopper', noise=NoiseConfig(actuator=0.2), dead_actuators=2))
    world.reset(seed=0)
    state = world.state
    executed = world.step(np.zeros(5))[4]['executed_action']
    assert executed.shape == (5,) and (executed != 0).all()
    world.state = state
    assert (world.step(np.zeros(5))[4]['executed_action'] == executed).all()


@pytest.mark.parametrize('num', [-1, 65])
def test_the_number_of_dead_actuators_is_bounded(num):
    with pytest.raises(SpecError, match='world.dead_actuators must be at'):
        load(WorldConfig, {'task': 'hopper', 'dead_actuators': num}, 'world')
