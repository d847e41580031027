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

"""gymnasium's own MuJoCo robots, moved by torques: an arm in the plane, and runners."""

from __future__ import annotations

import gymnasium
import numpy as np

from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec, SPEC_VERSION
from dpg_robot.sim.task import control_rate, IMAGE_SIZE, max_age, Task

RUNNERS = {
    'half_cheetah': 'HalfCheetah-v5', 'hopper': 'Hopper-v5', 'walker2d': 'Walker2d-v5'}
_JOINTS, _POSE = 'sensor_msgs/msg/JointState', 'geometry_msgs/msg/PoseStamped'


class _TorqueTask(Task):

    def __init__(self, name, gymnasium_id, observation, render_mode):
        env = gymnasium.make(gymnasium_id, render_mode=render_mode, width=IMAGE_SIZE,
                             height=IMAGE_SIZE)
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


def _torque_term(model):
    motors = [model.actuator(i) for i in range(model.nu)]
    torque = tuple(float(motor.gear[0] * motor.ctrlrange[1]) for motor in motors)
    size = len(motors)
    return ActionTerm(
        'joint_torque', 'effort/commands', 'std_msgs/msg/Float64MultiArray',
        tuple(f'data[{i}]' for i in range(size)), 'N m', scale=torque,
        lower=tuple(-value for value in torque), upper=torque, safe=(0.0,) * size,
        rate_limit=(None,) * size,
        joints=tuple(model.joint(motor.trnid[0]).name for motor in motors))


def _reacher_terms(sim):
    joints, age = ('joint0', 'joint1'), max_age(sim)
    xy = ('pose.position.x', 'pose.position.y')
    return (
        ObservationTerm('joint_position', 'joint_states', _JOINTS,
                        tuple(f'position[{joint}]' for joint in joints), 'rad', age),
        ObservationTerm('joint_velocity', 'joint_states', _JOINTS,
                        tuple(f'velocity[{joint}]' for joint in joints), 'rad/s', age),
        ObservationTerm('target_position', 'target/pose', _POSE, xy, 'm', 1.0),
        ObservationTerm('fingertip_position', 'fingertip/pose', _POSE, xy, 'm', age))


def _runner_terms(sim):
    age = max_age(sim)
    hinges = [sim.model.joint(i).name for i in range(2, sim.model.njnt)]
    return (
        ObservationTerm('height', 'joint_states', _JOINTS, ('position[rootz]',), 'm', age),
        ObservationTerm('joint_position', 'joint_states', _JOINTS,
                        tuple(f'position[{joint}]' for joint in hinges), 'rad', age),
        # A topic of its own: a message holds positions of all its joints, or of none.
        ObservationTerm('forward_velocity', 'root/joint_states', _JOINTS,
                        ('velocity[rootx]',), 'm/s', age),
        ObservationTerm('vertical_velocity', 'joint_states', _JOINTS,
                        ('velocity[rootz]',), 'm/s', age),
        ObservationTerm('joint_velocity', 'joint_states', _JOINTS,
                        tuple(f'velocity[{joint}]' for joint in hinges), 'rad/s', age))
