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

"""The simulation's own environment beside each task, and our observation said in its words."""

from functools import cache

import gymnasium
import numpy as np

from dpg_robot.sim.task import Task
from dpg_robot.sim.world import make_world, WorldConfig

IDS = {
    'fetch_reach': 'FetchReachDense-v4', 'fetch_push': 'FetchPushDense-v4',
    'fetch_slide': 'FetchSlideDense-v4', 'fetch_pick_and_place': 'FetchPickAndPlaceDense-v4',
    'hand_reach': 'HandReachDense-v3', 'hand_manipulate_block': 'HandManipulateBlockDense-v1',
    'adroit_door': 'AdroitHandDoor-v1', 'franka_reach': 'FrankaKitchen-v1',
    'point_maze': 'PointMaze_UMazeDense-v3', 'reacher': 'Reacher-v5',
    'half_cheetah': 'HalfCheetah-v5', 'hopper': 'Hopper-v5', 'walker2d': 'Walker2d-v5',
    'ant': 'Ant-v5'}
OPTIONS = {'franka_reach': {'robot_noise_ratio': 0.0, 'object_noise_ratio': 0.0}}
RUNNERS = ('half_cheetah', 'hopper', 'walker2d', 'ant')


@cache
def make_task(name: str, which: int = 0) -> Task:
    """Return a task without the noise around it; the same one for each number."""
    return make_world(WorldConfig(name)).unwrapped


@cache
def make_peer(name: str) -> gymnasium.Env:
    """Return the simulation's own environment."""
    return gymnasium.make(IDS[name], **OPTIONS.get(name, {})).unwrapped


def draw_actions(task, num, seed=0):
    """Return random actions, shape (num, action_dim)."""
    return np.random.default_rng(seed).uniform(-1, 1, (num, *task.action_space.shape))


def peer_action(name, action):
    """Return our action as the simulation takes it: with that of fingers that do not move."""
    idle = {'fetch_reach': 1, 'fetch_push': 1, 'fetch_slide': 1, 'franka_reach': 2}
    return np.append(action, np.zeros(idle.get(name, 0)))


def terms_of(task, obs):
    """Return each term's values by its name."""
    sizes = [term.size for term in task.policy_spec.observation]
    parts = np.split(obs, np.cumsum(sizes)[:-1])
    return {term.name: part for term, part in zip(task.policy_spec.observation, parts)}


def same_observation(name, ours, theirs):
    """Compare our observation with the simulation's own, all that both hold."""
    task = make_task(name)
    seen = terms_of(task, ours)
    if name == 'franka_reach':
        joints = np.append(seen['joint_position'], seen['joint_velocity'])
        return np.array_equal(joints, theirs['observation'][[*range(7), *range(9, 16)]])
    if isinstance(theirs, dict):
        theirs = np.append(theirs['observation'], theirs['desired_goal'])
    if name == 'ant':  # without the contact forces
        return np.array_equal(ours, theirs[:27])
    said = _IN_THEIR_WORDS.get(name, lambda seen, dt: ours)(seen, getattr(task.sim, 'dt', None))
    both = ~np.isnan(said)
    return said.shape == theirs.shape and np.allclose(said[both], theirs[both], rtol=0, atol=1e-12)


def _reacher(seen, dt):
    angle, tip, target = (seen[f'{which}_position'] for which in ('joint', 'fingertip', 'target'))
    return np.concatenate([np.cos(angle), np.sin(angle), target, seen['joint_velocity'],
                           tip - target])


def _fetch_reach(seen, dt):
    return np.concatenate([
        seen['end_effector_position'], _UNSEEN, seen['end_effector_velocity'] * dt, _UNSEEN,
        seen['goal_position']])


def _fetch_object(seen, dt):
    hand, block = seen['end_effector_position'], seen['object_position']
    velocity = seen['end_effector_velocity']
    return np.concatenate([
        hand, block, block - hand, seen.get('finger_position', _UNSEEN),
        _angles(seen['object_orientation']), (seen['object_velocity'] - velocity) * dt,
        seen['object_angular_velocity'] * dt, velocity * dt,
        seen.get('finger_velocity', _UNSEEN / dt) * dt, seen['goal_position']])


def _block(seen, dt):
    turn = seen['object_orientation']
    return np.concatenate([
        seen['joint_position'], seen['joint_velocity'], seen['object_velocity'],
        _matrix(turn).T @ seen['object_angular_velocity'], seen['object_position'], turn,
        seen['goal_position'], seen['goal_orientation']])


def _door(seen, dt):
    palm, handle = seen['palm_position'], seen['handle_position']
    is_open = 1.0 if seen['door_position'][1] > 1.0 else -1.0
    return np.concatenate([seen['joint_position'], seen['door_position'], palm, handle,
                           palm - handle, [is_open]])


_UNSEEN = np.full(2, np.nan)
_IN_THEIR_WORDS = {
    'reacher': _reacher, 'fetch_reach': _fetch_reach, 'fetch_push': _fetch_object,
    'fetch_slide': _fetch_object, 'fetch_pick_and_place': _fetch_object,
    'hand_manipulate_block': _block, 'adroit_door': _door}


def _matrix(quaternion):
    """Return the rotation matrix of a unit quaternion w, x, y, z."""
    w, (x, y, z) = quaternion[0], quaternion[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def _angles(quaternion):
    """Return the angles that gymnasium-robotics makes of an orientation."""
    turn = _matrix(quaternion)
    return np.array([-np.arctan2(turn[1, 2], turn[2, 2]), np.arcsin(turn[0, 2]),
                     -np.arctan2(turn[0, 1], turn[0, 0])])
