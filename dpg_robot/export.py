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

"""Export: a torch policy and its contract to one sealed ONNX file, with proof of parity."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from dpg_robot.contract.model_file import HASH_KEY, HASH_PLACEHOLDER, seal, SPEC_KEY
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError
from dpg_robot.learn.checkpoint import write_atomic
from dpg_robot.runtime.onnx_policy import OnnxPolicy

# Largest difference allowed between torch and ONNX, as a fraction of the action's range.
PARITY_TOLERANCE = 1e-5


class DeployedPolicy(nn.Module):
    """The graph of the file: physical observation and eps in, physical action out."""

    def __init__(self, policy, spec: PolicySpec):
        """Copy a :class:`SquashedGaussianPolicy` into plain layers.

        :raises SpecError: if the policy's sizes are not those of the spec.
        """
        super().__init__()
        sizes = {'obs_dim': policy.norm.shift.numel(), 'action_dim': policy.action_dim,
                 'eps_dim': policy.action_dim}
        for name, size in sizes.items():
            if getattr(spec, name) != size:
                raise SpecError(f'spec.{name} must be {size}, the size of the policy, '
                                f'got {getattr(spec, name)}')
        self.norm, self.log_std_min, self.span = policy.norm, policy.log_std_min, policy.span
        layers = []
        for weight, bias in zip(policy.net.weights, policy.net.biases):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data = weight[0].detach().T.contiguous()
            linear.bias.data = bias[0, 0].detach().clone()
            layers += [linear, nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.register_buffer('action_scale', torch.tensor(spec.action_scale))
        self.register_buffer('action_offset', torch.tensor(spec.action_offset))

    def forward(self, observation: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Return physical actions (B, action_dim) from observations (B, obs_dim) and eps."""
        mean, raw = self.net(self.norm(observation)).chunk(2, dim=-1)
        std = torch.exp(self.log_std_min + self.span * torch.sigmoid(raw))
        return torch.tanh(mean + std * eps) * self.action_scale + self.action_offset


def _reach(spec):
    """Return the range of each action, or more: what float32 can tell to within the tolerance."""
    low, high = (np.array([limit for term in spec.action for limit in getattr(term, side)])
                 for side in ('lower', 'upper'))
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))
    return np.maximum(high - low, 2 * step / PARITY_TOLERANCE)


def export_policy(policy, spec: PolicySpec, observations: np.ndarray, path: Path) -> float:
    """Write a policy as one sealed ONNX file, if torch and ONNX agree.

    :param policy: a :class:`dpg_robot.learn.policy.SquashedGaussianPolicy`.
    :param observations: recorded physical observations to prove parity on, (N, obs_dim).
    :param path: file to write; replaced in one step.
    :return: largest difference found, as a fraction of the action's range.
    :raises SpecError: if they differ by more than ``PARITY_TOLERANCE``, or a robot would refuse
        the file; nothing is written.
    """
    PolicySpec.from_json(spec.to_json())  # refuses what a robot would
    # New layers draw random numbers; a training that goes on afterwards must not notice.
    with torch.random.fork_rng(devices=[]):
        model = to_onnx(DeployedPolicy(policy, spec))
    observations = np.asarray(observations, np.float32)
    difference = parity(policy, spec, model, observations)
    _require(difference, path)
    for key, value in ((SPEC_KEY, spec.to_json()), (HASH_KEY, HASH_PLACEHOLDER)):
        model.metadata_props.add(key=key, value=value)
    data = seal(model.SerializeToString(deterministic=True))
    _require(deployed_parity(policy, data, observations), path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # A trainer_node and the command line may export the same run.
    write_atomic(Path(path), lambda file: file.write(data), alone=False)
    return difference


def _require(difference, path):
    if not difference <= PARITY_TOLERANCE:  # also a NaN
        raise SpecError(f'{path} is not written: torch and ONNX must agree to '
                        f'{PARITY_TOLERANCE:g} of the action range, got {difference:g}')


def deployed_parity(policy, data: bytes, observations: np.ndarray) -> float:
    """Return the largest difference of the sealed bytes, run one by one as a robot runs them.

    :return: difference as a fraction of the action's range; deterministic policy.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        file.write_bytes(data)
        deployed = OnnxPolicy(file)
    theirs = np.stack([deployed(observation) for observation in observations])
    with torch.no_grad():
        eps = torch.zeros(len(observations), deployed.spec.eps_dim)
        ours = policy(torch.from_numpy(observations), eps).numpy()
    scale, offset = (np.array(each, np.float32) for each in (
        deployed.spec.action_scale, deployed.spec.action_offset))  # as in the graph
    return float(np.max(np.abs(ours * scale + offset - theirs) / _reach(deployed.spec)))


def to_onnx(module: DeployedPolicy) -> onnx.ModelProto:
    """Translate the graph, with a free batch dimension."""
    obs_dim, eps_dim = module.norm.shift.numel(), module.action_scale.numel()
    example = (torch.zeros(2, obs_dim), torch.zeros(2, eps_dim))
    batch = torch.export.Dim('batch')
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        for name in ('onnxscript', 'torch.onnx'):
            logging.getLogger(name).setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(), example, dynamo=True, input_names=['observation', 'eps'],
            output_names=['action'], dynamic_shapes=({0: batch}, {0: batch}), verbose=False)
    model = program.model_proto
    for node in model.graph.node:  # source locations of this machine: no business of the robot's
        del node.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def parity(policy, spec: PolicySpec, model: onnx.ModelProto, observations: np.ndarray) -> float:
    """Return the largest difference between the trained policy and the ONNX graph.

    Half of the comparisons are deterministic (eps = 0), half have drawn eps.

    :return: difference as a fraction of the action's range (upper minus lower limit).
    """
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider'])
    drawn = np.random.default_rng(0).standard_normal(
        (len(observations), spec.eps_dim)).astype(np.float32)
    scale, offset = torch.tensor(spec.action_scale), torch.tensor(spec.action_offset)
    reach = _reach(spec)
    worst = []
    for eps in (np.zeros_like(drawn), drawn):
        with torch.no_grad():
            ours = policy(torch.from_numpy(observations), torch.from_numpy(eps)) * scale + offset
        theirs, = session.run(['action'], {'observation': observations, 'eps': eps})
        worst.append(np.max(np.abs(ours.numpy() - theirs) / reach))
    return float(np.max(worst))  # NaN if any action is: Python's max would drop it
