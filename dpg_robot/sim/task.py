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

"""What every MuJoCo task shares: the time limit, the picture, and a state to go back to."""

from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np

from dpg_robot.contract.spec import PolicySpec
from dpg_robot.contract.strict import SpecError

# A measurement may miss two control periods; nothing is asked to be fresher than LEAST_AGE_S.
MAX_AGE_PERIODS = 2.5
LEAST_AGE_S = 0.1
IMAGE_SIZE = 320

_ALL = mujoco.mjtState.mjSTATE_INTEGRATION
# Places of MuJoCo's warnings of positions, velocities, accelerations and commands not finite.
_DIVERGED = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADCTRL + 1)


class Task(gymnasium.Env):
    """A simulation of gymnasium's with physical observations and a contract.

    Physics, rewards, goals and terminations are the simulation's own. The observation is in
    physical units, in the order of ``policy_spec.observation``; the action is normalised.
    """

    metadata = {'render_modes': ['rgb_array']}

    def __init__(self, sim: gymnasium.Env, spec: PolicySpec, episode_steps: int):
        """Wrap a simulation.

        :param sim: has MuJoCo's ``model`` and ``data``; it is owned from now on.
        :param episode_steps: control periods after which an episode is truncated.
        """
        self.sim, self.policy_spec, self.episode_steps = sim, spec, episode_steps
        self.render_mode = sim.render_mode
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (spec.obs_dim,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start an episode; a seed makes it and those that follow repeatable."""
        super().reset(seed=seed)
        self.steps = 0
        obs, info = self.sim.reset(seed=seed)
        self.sim.data.warning.number[_DIVERGED] = 0
        return self._observe(obs), info

    def step(self, action: np.ndarray):
        """Advance one control period under a normalised action, shape (action_dim,)."""
        self.steps += 1
        obs, reward, terminated, _, info = self.sim.step(self._command(action))
        if self.sim.data.warning.number[_DIVERGED].any():  # MuJoCo has begun anew by itself
            raise SpecError(f'the simulation of {self.policy_spec.task} must stay finite, but its '
                            'physics diverged: take a shorter physics time step, lower gains, or '
                            'narrower ranges to randomize')
        if 'success' in info:  # some simulations call it so
            info['is_success'] = info.pop('success')
        if 'is_success' in info:
            info['is_success'] = bool(info['is_success'])
        truncated = self.steps >= self.episode_steps
        return self._observe(obs), float(reward), bool(terminated), truncated, info

    def _command(self, action):
        """Return the action that the simulation takes."""
        return action

    def _observe(self, obs):
        """Return the physical observation, from the simulation's own."""
        return obs

    def render(self) -> np.ndarray:
        """Return an image, shape (height, width, 3)."""
        state = self.state
        image = self.sim.render()
        # Some simulations move bodies to show a goal, which must not change what happens next.
        self.state = state
        return image

    def show_goal(self, scene: mujoco.MjvScene) -> None:
        """Put the goal where a viewer sees it; :meth:`render` does so by itself.

        :param scene: what a viewer draws beside the model.
        """
        getattr(self.sim, '_render_callback', lambda: None)()

    def close(self) -> None:
        """Release the renderer."""
        self.sim.close()

    def _remembered(self) -> dict[str, np.ndarray]:
        """Return what decides the future beside MuJoCo's state; arrays, restored in place."""
        return {}

    @property
    def state(self) -> dict[str, Any]:
        """Return everything that decides the task's future."""
        return {'physics': get_physics(self.sim), 'goal': np.copy(getattr(self.sim, 'goal', ())),
                'steps': self.steps, 'rng': self.sim.np_random.bit_generator.state,
                **{name: array.copy() for name, array in self._remembered().items()}}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        set_physics(self.sim, value['physics'])
        # Before mj_forward, which may need it, and after, since it may overwrite it.
        self._recall(value)
        # Positions of bodies and sites follow; a step computes them anew in any case.
        mujoco.mj_forward(self.sim.model, self.sim.data)
        self._recall(value)
        if value['goal'].size:
            self.sim.goal = value['goal'].copy()
        self.sim.np_random.bit_generator.state = value['rng']
        self.steps = value['steps']

    def _recall(self, value):
        for name, array in self._remembered().items():
            array[:] = value[name]


class GoalTask(Task):
    """A task whose reward and success depend on nothing but an achieved and a desired goal.

    :cvar achieved_goal_terms: names of the observation terms that are the achieved goal; the
        desired goal has as many elements, in the same order.
    :cvar desired_goal_terms: likewise of the desired goal.
    """

    achieved_goal_terms: tuple[str, ...]
    desired_goal_terms: tuple[str, ...] = ('goal_position',)

    def goal_reward(self, achieved: np.ndarray,
                    desired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the simulation would have given for reaching one goal when told another.

        :param achieved: achieved goals, shape (n, goal_dim), as observed after a step.
        :param desired: desired goals, likewise.
        :return: rewards, shape (n,), and whether each is a success, shape (n,), bool.
        """
        reward = self.sim.compute_reward(achieved, desired, {})
        return np.asarray(reward, np.float64), np.asarray(self._success(achieved, desired), bool)

    def _success(self, achieved, desired):
        return self.sim._is_success(achieved, desired)


def get_physics(sim: gymnasium.Env) -> np.ndarray:
    """Return all that MuJoCo integrates, and what its solver starts from."""
    physics = np.empty(mujoco.mj_stateSize(sim.model, _ALL))
    mujoco.mj_getState(sim.model, sim.data, physics, _ALL)
    return physics


def set_physics(sim: gymnasium.Env, physics: np.ndarray) -> None:
    """Restore what :func:`get_physics` returned."""
    mujoco.mj_setState(sim.model, sim.data, physics, _ALL)


def stale_bodies(sim: gymnasium.Env) -> dict[str, np.ndarray]:
    """Return the poses of all bodies, for tasks whose next step starts from them.

    A step leaves them where its last substep began, which MuJoCo's state does not hold.
    """
    return {'body_position': sim.data.xpos, 'body_orientation': sim.data.xquat}


def control_rate(sim: gymnasium.Env) -> float:
    """Return how often a simulation takes an action [Hz]."""
    return round(1.0 / sim.dt, 9)


def max_age(sim: gymnasium.Env) -> float:
    """Return how old a measurement of a task may be [s]."""
    return max(LEAST_AGE_S, round(MAX_AGE_PERIODS * sim.dt, 9))
