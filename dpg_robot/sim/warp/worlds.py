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

"""Thousands of stochastic worlds on one device; nothing of a step goes through the host."""

from __future__ import annotations

from typing import Any

import torch

from dpg_robot.contract.strict import SpecError
from dpg_robot.sim.disturbances import RandomizeConfig
from dpg_robot.sim.mujoco_tasks import RUNNERS
from dpg_robot.sim.noise import StochasticWorld
from dpg_robot.sim.rate_limit import RateLimitedWorld
from dpg_robot.sim.warp.bodies import DevicePushes, ModelPool
from dpg_robot.sim.warp.fetch import FetchObjectOnDevice, FetchReachOnDevice
from dpg_robot.sim.warp.hand import HandReachOnDevice
from dpg_robot.sim.warp.locomotion import AntOnDevice, ReacherOnDevice, RunnerOnDevice
from dpg_robot.sim.warp.noise import (
    DeviceCommandNoise,
    DeviceMemory,
    DeviceObservationNoise,
    Draws,
)
from dpg_robot.sim.warp.physics import Physics
from dpg_robot.sim.warp.robot import DeviceLimiter, ReachOnDevice, TrackOnDevice

# fetch_slide is missing: a puck that slides needs more than the one contact between a cylinder and
# a box that mujoco_warp finds.
ON_DEVICE = {
    'fetch_reach': FetchReachOnDevice, 'fetch_push': FetchObjectOnDevice,
    'fetch_pick_and_place': FetchObjectOnDevice, 'hand_reach': HandReachOnDevice,
    'reach': ReachOnDevice, 'track': TrackOnDevice, 'reacher': ReacherOnDevice,
    **dict.fromkeys(RUNNERS, RunnerOnDevice), 'ant': AntOnDevice}
# MuJoCo takes numbers beyond this for a simulation that has diverged.
MOST = 1e10
TROUBLE = (
    'an action for {task} must be finite, got one that is not',
    'the simulation of {task} must stay finite, but its physics diverged: take a shorter physics '
    'time step, lower gains, or narrower ranges to randomize',
    'a world of {task} must have no more contacts than there is room for on the device '
    '({contacts}), but had more')


class DeviceWorlds:
    """Worlds of one task, stepped together; every result is a tensor on their device.

    An episode that ends is reset in the same step; ``info['final_obs']`` holds the true last
    observation of every world. Random numbers come from one generator, so what world i sees
    depends on how many there are.

    :ivar policy_spec: the contract, the same as that of the CPU world.
    :ivar achieved_goal: places of the achieved goal in the observation; none without a goal.
    """

    def __init__(self, world: StochasticWorld, num_envs: int, device: torch.device):
        """Build the device's version of a CPU world.

        :param world: all numbers are taken from it; it is owned from now on.
        :raises SpecError: if the task has no version for the device.
        """
        task = world.unwrapped
        self.num_envs, self.device, self._world = num_envs, device, world
        self.policy_spec, self.achieved_goal = world.policy_spec, world.achieved_goal
        self.single_observation_space = world.observation_space
        self.single_action_space = world.action_space
        self._episode_steps, self._num_alive = task.episode_steps, task.policy_spec.action_dim
        kind, noise = ON_DEVICE[self.policy_spec.task], world.noise
        self._pool = ModelPool(task.sim.model, self.policy_spec.task, noise.randomize, device) \
            if noise.randomize != RandomizeConfig() else None
        self.physics = Physics(task.sim.model, num_envs, device, _sim_steps(task.sim),
                               own=tuple(self._pool.fields) if self._pool else (),
                               contacts=kind.contacts, feels=kind.feels)
        self.task = kind(task, self.physics)
        self.draws = Draws(num_envs, device)
        self._memory = DeviceMemory(num_envs, device)
        self._command = DeviceCommandNoise(noise, self.policy_spec, self._memory)
        self._limiter = DeviceLimiter(self.policy_spec, self._memory) \
            if isinstance(world, RateLimitedWorld) else None
        self._observation = DeviceObservationNoise(noise, self.policy_spec, self._memory)
        self._pushes = DevicePushes(task.sim.model, noise.pushes, self.policy_spec.control_dt,
                                    self.physics, self._memory) if noise.pushes else None
        self.steps = torch.zeros(num_envs, dtype=torch.int32, device=device)
        self._never = torch.zeros(num_envs, dtype=torch.bool, device=device)
        # What went wrong so far, on the device, and as far as the host has been told.
        self._trouble = torch.zeros(len(TROUBLE), dtype=torch.bool, device=device)
        self._told = torch.zeros(len(TROUBLE), dtype=torch.bool, pin_memory=device.type == 'cuda')
        self._told_on_host = self._told.numpy()

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Start an episode in every world.

        :param seed: makes everything that follows repeatable, for this number of worlds.
        :return: observations, shape (num_envs, obs_dim), float32, and an empty info.
        :raises SpecError: as :meth:`check`, of the worlds as they were.
        """
        self.check()
        if seed is not None:
            self.draws.generator.manual_seed(seed)
            if self._pool is not None:
                self._pool.seed(seed)
        return self._begin(~self._never), {}

    @torch.no_grad()
    def step(self, actions: torch.Tensor):
        """Advance every world by one control period.

        :param actions: normalised, shape (num_envs, action_dim), float32.
        :return: observations, rewards, terminations, truncations, and an info with ``final_obs``,
            ``executed_action`` and, if the task knows it, ``success`` (0 or 1).
        :raises SpecError: as :meth:`check`, of a step before; how long before depends on how far
            the device is behind.
        """
        if self._told_on_host.any():  # nothing waits
            self.check()
        told = actions
        if self._limiter is not None:
            actions = self._limiter(actions)
        executed = self._command(actions, self.draws)
        if self._pushes is not None:
            self._pushes.step(self.draws)
        self.task.command(executed[:, :self._num_alive])
        self.physics.step()
        self.task.finish()
        reward, terminated, success = self.task.judge(executed[:, :self._num_alive])
        true_obs = self.task.observe()
        self._watch(told, true_obs)
        final_obs = self._observation(true_obs, self.draws)
        self.steps += 1
        truncated = self.steps >= self._episode_steps
        terminated = self._never.clone() if terminated is None else terminated
        done = terminated | truncated
        obs = torch.where(done[:, None], self._begin(done), final_obs)
        info = {'final_obs': final_obs, 'executed_action': executed}
        if success is not None:
            info['success'] = success.float()
        return obs, reward, terminated, truncated, info

    def _begin(self, done):
        """Begin episodes of some worlds; return their first observations."""
        self.steps.mul_(~done)
        self._memory.begin(done, self.draws)
        if self._pool is not None:
            self._pool.begin(done, self.physics, self.draws)
        self.task.begin(done, self.draws)
        held = self._held_action()
        self._command.hold(done, held)
        if self._limiter is not None:
            self._limiter.begin(done, held)
        return self._observation.first(self.task.observe(), done, self.draws)

    def _held_action(self):
        held = torch.zeros(self.num_envs, self.policy_spec.action_dim, device=self.device)
        held[:, :self._num_alive] = self.task.held_action
        return held

    def _watch(self, actions, obs):
        """Note what went wrong in a step, and tell the host when the device comes to it."""
        self._trouble |= torch.stack([
            ~actions.isfinite().all(), ~(obs.abs() < MOST).all(), self.physics.overflow().any()])
        self._told.copy_(self._trouble, non_blocking=True)

    def check(self) -> None:
        """Check what a step does not wait for; this does.

        :raises SpecError: if an action was not finite, the physics diverged, or a world had no
            room for its contacts.
        """
        trouble = self._trouble.tolist()
        self._trouble.zero_()
        self._told.zero_()
        self.physics.forget_overflow()
        for what, is_so in zip(TROUBLE, trouble):
            if is_so:
                raise SpecError(what.format(task=self.policy_spec.task,
                                            contacts=self.task.contacts))

    def get_state(self) -> dict[str, torch.Tensor]:
        """Return everything that decides the future.

        :raises SpecError: as :meth:`check`.
        """
        self.check()
        return {name: tensor.clone() for name, tensor in self._state()} | {
            'generator': self.draws.generator.get_state()}

    def set_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore it, to the bit."""
        for name, tensor in self._state():
            tensor.copy_(state[name])
        self.draws.generator.set_state(state['generator'].cpu())
        self.physics.settle()

    def _state(self):
        pool = {} if self._pool is None else self._pool.fields
        for room, tensors in (('physics', self.physics.data), ('model', self.physics.model),
                              ('pool', pool), ('task', self.task.memory),
                              ('noise', self._memory.tensors)):
            yield from ((f'{room}/{name}', tensor) for name, tensor in tensors.items())
        yield 'steps', self.steps

    def close(self) -> None:
        """Release the CPU world."""
        self._world.close()


def build(world: StochasticWorld, num_envs: int, device: str) -> DeviceWorlds:
    """Build the worlds, if the device is there.

    :raises SpecError: naming what is missing.
    """
    if num_envs < 1:
        raise SpecError(f'num_envs must be at least 1, got {num_envs}')
    if world.policy_spec.task not in ON_DEVICE:
        raise SpecError(f'world.task must be one with a version for devices '
                        f'({", ".join(ON_DEVICE)}), got {world.policy_spec.task}')
    return DeviceWorlds(world, num_envs, _find(device))


def _find(name):
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(f'device must be cpu or cuda, got {name}') from error
    if device.type not in ('cpu', 'cuda'):
        raise SpecError(f'device must be cpu or cuda, got {name}')
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise SpecError(f'device must be one that this machine has, but there is no NVIDIA '
                            f'GPU that torch can use; got {name}')
        if (device.index or 0) >= torch.cuda.device_count():
            raise SpecError(f'device must be one that this machine has (cuda:0 to cuda:'
                            f'{torch.cuda.device_count() - 1}), got {name}')
        if device.index is None:
            device = torch.device('cuda', torch.cuda.current_device())
    return device


def _sim_steps(sim):
    """Return the physics steps in a control period."""
    return round(sim.dt / sim.model.opt.timestep)
