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

"""gymnasium's own MuJoCo robots, moved by torques: an arm in the plane, runners, and an ant."""

from __future__ import annotations

import gymnasium
import numpy as np

from dpg_robot.contract.spec import PolicySpec, SPEC_VERSION
from dpg_robot.sim import terms
from dpg_robot.sim.task import control_rate, IMAGE_SIZE, max_age, stale_bodies, Task

RUNNERS = {
    'half_cheetah': 'HalfCheetah-v5', 'hopper': 'Hopper-v5', 'walker2d': 'Walker2d-v5'}


class _TorqueTask(Task):

    def __init__(self, name, gymnasium_id, observation, render_mode, **options):
        env = gymnasium.make(gymnasium_id, render_mode=render_mode, width=IMAGE_SIZE,
                             height=IMAGE_SIZE, **options)
        sim = env.unwrapped
        torque = _torque_term(sim.model)
        spec = PolicySpec(
            spec_version=SPEC_VERSION, task=name, robot=name, control_rate_hz=control_rate(sim),
            observation=observation(sim), action=(torque,), eps_dim=torque.size)
        super().__init__(sim, spec, env.spec.max_episode_steps)


class Reacher(_TorqueTask):
    """Bring the tip of a two-joint arm to a target, for 50 periods of 20 ms.

    The observation is joint angles in (-pi, pi] [rad], joint velocities [rad/s], and x and y of
    target and fingertip [m]. That is what gymnasium's Reacher-v5 observes, with angles in place
    of their sines and cosines. The reward is minus the distance, minus the squared action.
    """

    achieved_goal_terms = ('fingertip_position',)

    def __init__(self, render_mode: str | None = None):
        """Build the simulation."""
        super().__init__('reacher', 'Reacher-v5', _reacher_terms, render_mode)

    def _observe(self, obs):
        data = self.sim.data
        angle = np.arctan2(np.sin(data.qpos[:2]), np.cos(data.qpos[:2]))
        tip = self.sim.get_body_com('fingertip')[:2]
        return np.concatenate([angle, data.qvel[:2], data.qpos[2:], tip])


class Runner(_TorqueTask):
    """Run forward, for at most 1,000 periods; a hopper or walker that falls is terminated.

    The observation, the reward and the rules are those of gymnasium's HalfCheetah-v5, Hopper-v5
    and Walker2d-v5: how far it has come is not observed, and the last two show velocities no
    greater than 10. The torso's position is three joints, ``rootx``, ``rootz`` and ``rooty``.
    """

    def __init__(self, name: str, render_mode: str | None = None):
        """Build the simulation.

        :param name: one of ``RUNNERS``.
        """
        super().__init__(name, RUNNERS[name], _runner_terms, render_mode)


class Ant(_TorqueTask):
    """Run forward on four legs, for at most 1,000 periods of 50 ms; a fall terminates.

    The reward and the rules are those of gymnasium's Ant-v5, and so is the observation without
    contact forces, which robots do not measure: height, orientation, joint angles, velocity in
    the world's frame, angular velocity about the torso's own axes, and joint velocities.
    """

    def __init__(self, render_mode: str | None = None):
        """Build the simulation."""
        super().__init__('ant', 'Ant-v5', _ant_terms, render_mode,
                         include_cfrc_ext_in_observation=False)

    def _remembered(self):
        # The reward is how far the torso came from where it was seen last.
        return stale_bodies(self.sim)


def _torque_term(model):
    motors = range(model.nu)
    return terms.commands(
        'joint_torque', 'effort/commands', 'N m',
        model.actuator_gear[:, 0] * model.actuator_ctrlrange[:, 1],
        terms.driven_joints(model, motors))


def _reacher_terms(sim):
    joints, age = ('joint0', 'joint1'), max_age(sim)
    return (
        terms.joints('joint_position', 'position', joints, 'rad', age),
        terms.joints('joint_velocity', 'velocity', joints, 'rad/s', age),
        terms.point('target_position', 'target/pose', terms.GOAL_AGE_S, 'xy'),
        terms.point('fingertip_position', 'fingertip/pose', age, 'xy'))


def _runner_terms(sim):
    age = max_age(sim)
    hinges = [sim.model.joint(i).name for i in range(2, sim.model.njnt)]
    return (
        terms.joints('height', 'position', ('rootz',), 'm', age),
        terms.joints('joint_position', 'position', hinges, 'rad', age),
        # A topic of its own: a message holds positions of all its joints, or of none.
        terms.joints('forward_velocity', 'velocity', ('rootx',), 'm/s', age,
                     topic='root/joint_states'),
        terms.joints('vertical_velocity', 'velocity', ('rootz',), 'm/s', age),
        terms.joints('joint_velocity', 'velocity', hinges, 'rad/s', age))


def _ant_terms(sim):
    age = max_age(sim)
    hinges = [sim.model.joint(i).name for i in range(1, sim.model.njnt)]
    return (
        terms.point('height', 'torso/pose', age, 'z'),
        terms.imu_orientation('orientation', 'imu/data', age),
        terms.joints('joint_position', 'position', hinges, 'rad', age),
        terms.velocity('velocity', 'torso/twist', age),
        terms.imu_angular_velocity('angular_velocity', 'imu/data', age),
        terms.joints('joint_velocity', 'velocity', hinges, 'rad/s', age))
