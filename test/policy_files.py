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

"""Specs and small policy files for tests."""

import numpy as np
from onnx import helper, numpy_helper, TensorProto

from dpg_robot.contract import model_file
from dpg_robot.contract.spec import ActionTerm, ObservationTerm, PolicySpec


def pose_spec(**changes):
    """Return a spec like fetch_reach's: two poses and a twist in, a twist command out."""
    xyz = ('x', 'y', 'z')
    pose, twist = 'geometry_msgs/msg/PoseStamped', 'geometry_msgs/msg/TwistStamped'
    values = {
        'spec_version': 1, 'task': 'reach', 'robot': 'test_arm', 'control_rate_hz': 50.0,
        'eps_dim': 3,
        'observation': (
            ObservationTerm('hand', 'hand/pose', pose,
                            tuple(f'pose.position.{a}' for a in xyz), 'm', 0.1,
                            (-3.0,) * 3, (3.0,) * 3),
            ObservationTerm('goal', 'goal/pose', pose,
                            tuple(f'pose.position.{a}' for a in xyz), 'm', 1.0)),
        'action': (
            ActionTerm('hand_velocity', 'hand/command', twist,
                       tuple(f'twist.linear.{a}' for a in xyz), 'm/s', scale=(1.0,) * 3,
                       lower=(-0.5,) * 3, upper=(0.5,) * 3, safe=(0.0,) * 3,
                       rate_limit=(None,) * 3, frame_id='world'),)}
    return PolicySpec(**{**values, **changes})


def joint_spec(**changes):
    """Return a spec of a two-joint arm: JointState in, Float64MultiArray out."""
    joints = ('shoulder', 'elbow')
    values = {
        'spec_version': 1, 'task': 'hold', 'robot': 'test_arm', 'control_rate_hz': 50.0,
        'eps_dim': 2,
        'observation': (
            ObservationTerm('position', 'joint_states', 'sensor_msgs/msg/JointState',
                            tuple(f'position[{j}]' for j in joints), 'rad', 0.1),
            ObservationTerm('velocity', 'joint_states', 'sensor_msgs/msg/JointState',
                            tuple(f'velocity[{j}]' for j in joints), 'rad/s', 0.1,
                            (-5.0,) * 2, (5.0,) * 2)),
        'action': (
            ActionTerm('torque', 'effort/commands', 'std_msgs/msg/Float64MultiArray',
                       ('data[0]', 'data[1]'), 'N m', scale=(2.0,) * 2, lower=(-2.0,) * 2,
                       upper=(2.0,) * 2, safe=(0.0, 0.0), rate_limit=(50.0, None),
                       joints=joints),)}
    return PolicySpec(**{**values, **changes})


def model_bytes(spec, weights, *, names=('observation', 'eps', 'action'), metadata=None,
                sizes=None, bias=None):
    """Return an unsealed model: action = observation @ weights + eps @ ones / 10 + bias.

    :param weights: shape (obs_dim, action_dim).
    :param metadata: replaces the spec and the placeholder of the hash.
    :param sizes: observation, eps and action sizes that the graph declares.
    """
    obs_dim, eps_dim, action_dim = sizes or (spec.obs_dim, spec.eps_dim, spec.action_dim)
    weights = np.asarray(weights, np.float32)
    mix = np.full((eps_dim, weights.shape[1]), 0.1, np.float32)
    bias = np.zeros(weights.shape[1]) if bias is None else bias
    observation, eps, action = names
    graph = helper.make_graph(
        [helper.make_node('MatMul', [observation, 'w'], ['mean']),
         helper.make_node('MatMul', [eps, 'mix'], ['noise']),
         helper.make_node('Add', ['mean', 'noise'], ['sum']),
         helper.make_node('Add', ['sum', 'bias'], [action])], 'policy',
        [helper.make_tensor_value_info(observation, TensorProto.FLOAT, ['batch', obs_dim]),
         helper.make_tensor_value_info(eps, TensorProto.FLOAT, ['batch', eps_dim])],
        [helper.make_tensor_value_info(action, TensorProto.FLOAT, ['batch', action_dim])],
        [numpy_helper.from_array(weights, 'w'), numpy_helper.from_array(mix, 'mix'),
         numpy_helper.from_array(np.asarray(bias, np.float32), 'bias')])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    if metadata is None:
        metadata = {model_file.SPEC_KEY: spec.to_json(),
                    model_file.HASH_KEY: model_file.HASH_PLACEHOLDER}
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


def write_model(path, spec, weights, **options):
    """Write a sealed model file and return its path."""
    path.write_bytes(model_file.seal(model_bytes(spec, weights, **options)))
    return path


def reach_weights():
    """Return weights for :func:`pose_spec`: the velocity points from the hand to the goal."""
    return np.vstack([-np.eye(3), np.eye(3)])
