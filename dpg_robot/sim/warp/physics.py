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

"""Many copies of one MuJoCo model on a device: state as torch tensors, steps as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import copy
import warnings

import mujoco
import mujoco_warp
import numpy as np
import torch
import warp

from dpg_robot.contract.strict import SpecError
from dpg_robot.garbage import uncollected
from dpg_robot.memory import is_out_of_memory

# What MuJoCo's state is made of, and what a world that begins anew loses.
STATE = ('qpos', 'qvel', 'act', 'qacc_warmstart', 'ctrl', 'xfrc_applied', 'mocap_pos',
         'mocap_quat', 'time')
# Numbers of the model that mujoco_warp keeps in a part of it.
_ELSEWHERE = {'gravity': 'opt', 'meaninertia': 'stat'}
# Of the flags of an overflow (mujoco_warp's OverflowType), the one that tells of no lack of room
# but of one contact that is resolved less well.
_COARSE_CONTACT = 1 << 8


class Physics:
    """The physics of ``num_envs`` worlds; every tensor is a view of what the device computes with.

    Nothing here waits for the device. Work goes to the stream that torch uses at the moment, so it
    is in order with everything that torch does.

    :ivar data: the tensors of the state by their names in MuJoCo, shape (num_envs, ...).
    :ivar model: likewise the model's numbers that each world has for itself.
    :ivar sim_steps: physics steps in a control period.
    """

    def __init__(self, model: mujoco.MjModel, num_envs: int, device: torch.device, sim_steps: int,
                 contacts: int, own: tuple[str, ...] = (), feels: bool = False):
        """Bring a model to the device.

        :param sim_steps: physics steps in a control period.
        :param contacts: room for so many in each world.
        :param own: numbers of the model that each world has for itself, by their names there.
        :param feels: whether the forces of contacts are computed after each control period.
        :raises SpecError: if the device cannot simulate this model, or has too little memory.
        """
        self.num_envs, self.device = num_envs, device
        self.sim_steps, self._feels = sim_steps, feels
        # Else it tells of itself, of each kernel that it compiles, and that there is no GPU.
        warp.config.log_level = warp.LOG_ERROR if device.type == 'cpu' else warp.LOG_WARNING
        warp.init()
        self._warp_device = warp.device_from_torch(device)
        if self._warp_device.is_cuda and not self._warp_device.is_mempool_enabled:
            raise SpecError('device must have a memory pool, from which graphs allocate, got '
                            f'{device} without one')
        batch = {name: num_envs for name in own if name not in _ELSEWHERE}
        with warp.ScopedDevice(self._warp_device), _room(num_envs):
            self._model, self._data = _bring(model, num_envs, contacts, batch)
            # What overflows is reported by :meth:`overflow`, and not from within kernels.
            self._model.opt.warn_overflow = False
            if self._warp_device.is_cuda:
                self._model.opt.graph_conditional = warp.is_conditional_graph_supported()
            for name in _ELSEWHERE.keys() & set(own):
                shared = self._field(name)
                each = warp.array(np.repeat(shared.numpy(), num_envs, 0), dtype=shared.dtype)
                setattr(getattr(self._model, _ELSEWHERE[name]), name, each)
            warp.synchronize_device()
        self.data = {name: self.view(name) for name in STATE if getattr(self._data, name).size}
        self.model = {name: warp.to_torch(self._field(name)) for name in own}
        mocap = [model.body(name).id for name in range(model.nbody)
                 if model.body_mocapid[name] >= 0]
        self._rest = {'mocap_pos': floats(model.body_pos[mocap], device),
                      'mocap_quat': floats(model.body_quat[mocap], device)}
        self._zero = torch.zeros((), device=device)
        self._overflow = self.view('overflow')
        self._graphs, self._streams = {}, {}

    def _field(self, name):
        place = _ELSEWHERE.get(name)
        return getattr(getattr(self._model, place) if place else self._model, name)

    def view(self, name: str) -> torch.Tensor:
        """Return an array of MuJoCo's data as a tensor that shares its memory."""
        return warp.to_torch(getattr(self._data, name))

    def step(self) -> None:
        """Advance all worlds by one control period."""
        # One graph of all steps would keep the memory that each of them takes behind its solver's
        # loop, since what is allocated behind a loop is freed by no graph.
        for _ in range(self.sim_steps):
            self.step_once()
        if self._feels:
            self._run('forces', self._forces)

    def settle(self) -> None:
        """Let positions, orientations and velocities of bodies and sites follow from the state."""
        self._run('settle', self._kinematics)

    def settle_velocities(self) -> None:
        """Let velocities alone follow, of bodies that are where they were seen last."""
        self._run('settle_velocities', self._velocities)

    def reset(self, done: torch.Tensor, start: dict[str, torch.Tensor]) -> None:
        """Put some worlds where an episode begins; what ``start`` leaves out is as in the model.

        :param done: which worlds, shape (num_envs,), bool.
        :param start: tensors of the state, shape (num_envs, ...) or without the first axis.
        """
        start = self._rest | start
        for name, tensor in self.data.items():
            put(tensor, done, start.get(name, self._zero))

    def overflow(self) -> torch.Tensor:
        """Return in which worlds there was no room for all contacts or constraints, bool."""
        return (self._overflow & ~_COARSE_CONTACT) != 0

    def forget_overflow(self) -> None:
        """Let :meth:`overflow` begin anew."""
        self._overflow.zero_()

    def step_once(self) -> None:
        """Advance all worlds by one physics step alone, as mujoco_warp's own loop does."""
        self._run('step_once', self._one_step)

    def _one_step(self):
        mujoco_warp.step(self._model, self._data)

    def _forces(self):
        mujoco_warp.rne_postconstraint(self._model, self._data)

    def _kinematics(self):
        mujoco_warp.kinematics(self._model, self._data)
        mujoco_warp.com_pos(self._model, self._data)
        self._velocities()

    def _velocities(self):
        mujoco_warp.com_vel(self._model, self._data)

    def _run(self, name: str, function: Callable[[], None]) -> None:
        if not self._warp_device.is_cuda:
            with warp.ScopedDevice(self._warp_device):
                return function()
        if name in self._graphs:
            return self._launch(name)
        # The first launch also takes memory.
        with warp.ScopedDevice(self._warp_device), _room(self.num_envs):
            self._graphs[name] = self._capture(function)
            self._launch(name)

    def _launch(self, name):
        stream = torch.cuda.current_stream(self.device)
        if stream.cuda_stream not in self._streams:
            self._streams[stream.cuda_stream] = warp.stream_from_torch(stream)
        warp.capture_launch(self._graphs[name], stream=self._streams[stream.cuda_stream])

    def _capture(self, function):
        """Record what a function does; nothing of it is done yet, and the state stays."""
        torch.cuda.synchronize(self.device)
        kept = {name: tensor.clone() for name, tensor in self.data.items()}
        torch.cuda.synchronize(self.device)
        function()  # once as it is, which compiles and loads all kernels
        warp.synchronize_device(self._warp_device)
        with uncollected(), warp.ScopedCapture(self._warp_device) as capture:
            function()
        for name, tensor in kept.items():
            self.data[name].copy_(tensor)
        self._overflow.zero_()
        torch.cuda.synchronize(self.device)
        return capture.graph


def floats(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor on a device."""
    return torch.tensor(np.asarray(values, np.float32), device=device)


def put(tensor: torch.Tensor, where: torch.Tensor, value: torch.Tensor) -> None:
    """Replace the values of some worlds in place, without asking the device how many they are.

    :param tensor: shape (num_envs, ...).
    :param where: shape (num_envs,), bool.
    :param value: broadcast to the tensor's shape.
    """
    rows = where.reshape(-1, *[1] * (tensor.ndim - 1))
    tensor.copy_(torch.where(rows, value, tensor))


@contextlib.contextmanager
def _room(num_envs: int) -> Iterator[None]:
    """Tell of too little memory, for which warp has no exception of its own, in one line."""
    try:
        yield
    except NotImplementedError:  # a RuntimeError as well
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # of a device that broke down, warp says the same; torch not
        raise SpecError(f'num_envs must fit into the memory of the device, got {num_envs}: '
                        f'{error}') from error


def _bring(model, num_envs, contacts, batch):
    try:
        return _put_model(model, batch), mujoco_warp.make_data(
            model, num_envs, nconmax=contacts, njmax=_most_constraints(model, contacts))
    except NotImplementedError as error:
        raise SpecError(f'the model must be one that mujoco_warp takes, got: {error}') from error


def _most_constraints(model, contacts):
    """Return how many rows of constraints a world has at most with so many contacts."""
    # A weld takes six; a friction cone is a pyramid of two for each of its directions.
    of_contact = 2 * max(1, model.geom_condim.max() - 1)
    return int(6 * model.neq + (model.dof_frictionloss > 0).sum() + model.ntendon
               + (model.tendon_frictionloss > 0).sum() + model.jnt_limited.sum()
               + of_contact * contacts)


def _put_model(model, batch):
    """Bring a model to the device, if need be with fewer contacts between two meshes or boxes.

    mujoco_warp refuses to find several contacts between meshes, and to use its newer algorithm
    for boxes, where geoms have a margin.
    """
    one, older = mujoco.mjtDisableBit.mjDSBL_MULTICCD, mujoco.mjtDisableBit.mjDSBL_NATIVECCD
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it tells that some kinds of contact are single ones
        for flags in (0, one):
            try:
                return mujoco_warp.put_model(_without(model, flags), batch_sizes=batch)
            except NotImplementedError:
                pass
        return mujoco_warp.put_model(_without(model, one | older), batch_sizes=batch)


def _without(model, flags):
    model = _with_single_pairs(copy.copy(model))
    model.opt.disableflags |= flags
    return model


def _with_single_pairs(model):
    """Let pairs of geoms that the model lists twice do alone what the two do together.

    mujoco_warp takes each pair once. Two equal contacts are one with half the regularisation
    ``R = (1 - d) / d`` and the same reference acceleration; equal where the impedance d is at its
    end, and near it elsewhere.
    """
    pairs = np.sort(np.stack([model.pair_geom1, model.pair_geom2], 1), 1)
    twice = ((pairs[:, None] == pairs[None]).all(2).sum(1) == 2) & (model.pair_solref[:, 0] > 0)
    old = model.pair_solimp[twice, 1]
    model.pair_solimp[twice, :2] = 2 / (1 / model.pair_solimp[twice, :2] + 1)
    new = model.pair_solimp[twice, 1]
    model.pair_solref[twice] *= np.stack([old / new, np.sqrt(new / old)], 1)
    return model
