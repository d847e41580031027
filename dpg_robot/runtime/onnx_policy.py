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

"""A policy in an ONNX file, ready to be called in a control loop."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

from dpg_robot.contract.model_file import read_sealed, SPEC_KEY
from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

_NUM_WARM_UP = 20


class OnnxPolicy:
    """A sealed model file: physical observations (and ``eps``) in, physical actions out.

    ``spec`` is the contract stored in the file, ``content_hash`` its hash and ``path`` where it
    was.
    """

    def __init__(self, path: str | os.PathLike):
        """Check the file's hash, load it, check it against its own spec, and warm up.

        :raises SpecError: if the file cannot be read, was changed, or breaks its spec.
        """
        self.path = path
        # The hash is checked before the runtime parses a byte.
        data, self.content_hash = read_sealed(path)
        self._session = _make_session(data, path)
        text = self._session.get_modelmeta().custom_metadata_map.get(SPEC_KEY)
        if text is None:
            raise SpecError(f'model file {path} must hold {SPEC_KEY} in its metadata, got none')
        try:
            self.spec = PolicySpec.from_json(text)
            _check_graph(self._session, self.spec)
        except SpecError as error:
            raise SpecError(f'model file {path} refused: {error}') from error
        self._bind()
        self._warm_up(path)

    def __call__(self, observation: np.ndarray, eps: np.ndarray | None = None) -> np.ndarray:
        """Return actions for observations; not for use by two threads at once.

        :param observation: physical units, shape (obs_dim,) or (B, obs_dim).
        :param eps: the policy's noise, of as many rows, eps_dim wide; None for the
            deterministic policy.
        :return: physical units, float32, shape (action_dim,) or (B, action_dim).
        """
        if observation.ndim == 1:
            self._observation[0] = observation
            self._eps[0] = 0.0 if eps is None else eps
            self._session.run_with_iobinding(self._binding)
            return self._action[0].copy()
        if eps is None:
            eps = np.zeros((len(observation), self.spec.eps_dim))
        feed = {'observation': observation.astype(np.float32), 'eps': eps.astype(np.float32)}
        return self._session.run(('action',), feed)[0]

    def _bind(self):
        # A quarter of the time of session.run for one row, and nothing is allocated.
        spec, self._binding = self.spec, self._session.io_binding()
        self._observation = np.zeros((1, spec.obs_dim), np.float32)
        self._eps = np.zeros((1, spec.eps_dim), np.float32)
        self._action = np.zeros((1, spec.action_dim), np.float32)
        for name, array in (('observation', self._observation), ('eps', self._eps)):
            self._binding.bind_input(
                name, 'cpu', 0, np.float32, array.shape, array.ctypes.data)
        self._binding.bind_output(
            'action', 'cpu', 0, np.float32, self._action.shape, self._action.ctypes.data)

    def _warm_up(self, path):
        # The first runs allocate; none of that may happen in the control loop.
        draw = np.random.default_rng(0)
        try:
            actions = [self(draw.standard_normal(self.spec.obs_dim))
                       for _ in range(_NUM_WARM_UP)]
        except Exception as error:
            raise SpecError(f'model file {path} refused: it must run on one observation: '
                            f'{error}') from error
        if not np.isfinite(actions).all(1).any():
            raise SpecError(f'model file {path} refused: its actions must be finite, got '
                            f'{actions[0]}, and no finite one for {_NUM_WARM_UP} observations')


def _make_session(data, path):
    options = onnxruntime.SessionOptions()
    # A policy is small: a second thread costs more to wake than it saves, and disturbs others.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # the runtime's own exceptions share no narrower base
        reason = str(error).splitlines()[0]
        raise SpecError(f'model file {path} refused: the runtime cannot load it: {reason}') \
            from error


def _check_graph(session, spec):
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    wanted_inputs = {'observation': spec.obs_dim, 'eps': spec.eps_dim}
    if set(inputs) != set(wanted_inputs) or 'action' not in outputs:
        raise SpecError('the graph must have inputs observation and eps and output action, got '
                        f'{", ".join(inputs)} and {", ".join(outputs)}')
    for name, size in wanted_inputs.items():
        _check_tensor(inputs[name], size)
    _check_tensor(outputs['action'], spec.action_dim)


def _check_tensor(node, size):
    if node.type != 'tensor(float)':
        raise SpecError(f'{node.name} must be a float32 tensor, got {node.type}')
    if len(node.shape) != 2 or node.shape[1] != size:
        raise SpecError(f'{node.name} must have shape (B, {size}) as the spec says, '
                        f'got {node.shape}')
