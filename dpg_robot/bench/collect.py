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

"""What a gradient benchmark is measured on: transitions, simulator states, a fixed target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

from gymnasium.vector import VectorWrapper
import numpy as np
import torch
from torch import nn

from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import ExperimentConfig, hindsight_goals
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.outcome import one_step_target
from dpg_robot.learn.replay import Batch
from dpg_robot.learn.trainer import Trainer, TrainerConfig
from dpg_robot.sim.world import make_vector, make_world

# The learner's settings that matter to the critic that collects; the others keep their defaults,
# so that what is collected serves whatever the estimators are set to.
CRITIC_FIELDS = ('gamma', 'batch_size', 'hidden', 'min_std', 'reward_scale', 'temperature',
                 'target_entropy', 'policy_rate', 'critic_rate', 'target_rate',
                 'value_weight_decay', 'precision')
# And the trainer's.
TRAINER_FIELDS = ('num_worlds', 'warmup_steps', 'updates_per_step', 'hindsight')
NUM_STATES_KEPT = 2_000
NUM_REPLICAS = 2


class Collection(NamedTuple):
    """The transitions of one training, in the order of time, world by world within a round.

    :param data: all transitions, N of them.
    :param executed: what the actuators carried out, shape (N, action_dim).
    :param target: ``y = reward_scale r + gamma (1 - terminated) V(s')``, shape (N,), V as it was
        when the training ended.
    :param states: some states of the task, each the one before a transition.
    :param rows: which transition that is, shape (len(states),).
    :param policy: parameters and normaliser of the final policy; ``value`` those of V.
    """

    data: Batch
    executed: torch.Tensor
    target: torch.Tensor
    states: list[Any]
    rows: torch.Tensor
    policy: dict[str, torch.Tensor]
    value: dict[str, torch.Tensor]

    def replica(self, which: int, count: int) -> Batch:
        """Return the newest transitions of the worlds with even (0) or odd (1) number."""
        # The number of worlds is even, so rows of a world are all even or all odd.
        return Batch(*(x[which::NUM_REPLICAS][-count:] for x in self.data))

    def networks(self, config: ExperimentConfig) -> tuple[nn.Module, nn.Module]:
        """Return policy and V as they were in the end, without gradients of their parameters."""
        obs_dim, action_dim = self.data.obs.shape[1], self.data.action.shape[1]
        with torch.random.fork_rng():
            learner = Learner(critic_config(config.learner), obs_dim, action_dim)
        learner.requires_grad_(False)
        learner.policy.load_state_dict(self.policy)
        learner.value_target.load_state_dict(self.value)
        return learner.policy.eval(), learner.value_target.eval()


def critic_config(config: LearnerConfig) -> LearnerConfig:
    """Return a plain critic's settings, those of a task as far as they concern it."""
    return LearnerConfig(
        estimator='critic', **{name: getattr(config, name) for name in CRITIC_FIELDS})


def collector_config(config: ExperimentConfig, num_transitions: int,
                     seed: int) -> ExperimentConfig:
    """Return the training that collects ``num_transitions`` for each of the two replicas.

    :raises SpecError: if noise or limited commands do not allow to measure the truth.
    """
    for key, value in config.world.noise.beyond_white.items():
        none = '{}' if isinstance(value, dict) else 0
        raise SpecError(f'world.noise.{key} must be {none} to measure gradients: state and '
                        'command must tell what one step does, but for white noise on the '
                        f'command; got {value}')
    for term in make_world(config.world).policy_spec.action:
        for key in ('rate_limit', 'acceleration_limit'):
            limits = getattr(term, key)
            if any(limit is not None for limit in limits):
                raise SpecError(f'{key} of the action term {term.name} must be null to measure '
                                'gradients: what a command does must not depend on the one '
                                f'before; got {list(limits)}')
    kept = {name: getattr(config.trainer, name) for name in TRAINER_FIELDS}
    kept['num_worlds'] += kept['num_worlds'] % NUM_REPLICAS
    steps = NUM_REPLICAS * num_transitions
    trainer = TrainerConfig(**kept, env_steps=steps, seed=seed,
                            replay_capacity=steps + kept['num_worlds'], eval_every_steps=0,
                            log_every_steps=steps, checkpoint_every_steps=2 * steps)
    return replace(config, learner=critic_config(config.learner), trainer=trainer)


def collect(config: ExperimentConfig) -> Collection:
    """Train as :func:`collector_config` says, and keep every transition and some states."""
    trainer = config.trainer
    rounds = -(-trainer.env_steps // trainer.num_worlds)
    envs = _Recorder(make_vector(config.world, trainer.num_worlds), rounds)
    with tempfile.TemporaryDirectory() as folder:
        # A training of the collector's own length is repeated rather than resumed.
        training = Trainer(trainer, config.learner, envs, make_vector(config.world, 1),
                           Path(folder), identity={}, goals=hindsight_goals(config))
        try:
            training.run()
        finally:
            training.close()
    learner, replay = training.learner, training.algorithm.replay
    data = Batch(*(x[:replay.size].clone() for x in replay.data))
    target = one_step_target(config.learner, learner.policy.norm, learner.value_target,
                             data.reward, data.next_obs, data.terminated)
    return Collection(data, torch.as_tensor(envs.executed).flatten(0, 1), target,
                      envs.states, torch.as_tensor(envs.rows),
                      learner.policy.state_dict(), learner.value_target.state_dict())


class _Recorder(VectorWrapper):
    """Keep what the actuators did, and now and then a state before a step."""

    def __init__(self, envs, rounds):
        """Watch ``rounds`` rounds; states come from the last three quarters of them."""
        super().__init__(envs)
        self.first = rounds // 4
        wanted = NUM_STATES_KEPT / envs.num_envs
        self.every = max(1, int((rounds - self.first) / wanted))
        # One array: a small one of each round, kept, would cut gigabytes of the heap to pieces.
        self.executed = np.empty((rounds, *envs.action_space.shape), np.float32)
        self.num_done, self.states, self.rows = 0, [], []

    def step(self, actions):
        done = self.num_done
        if done >= self.first and (done - self.first) % self.every == 0:
            self.states += [state['task'] for state in self.get_attr('state')]
            self.rows += range(done * self.num_envs, (done + 1) * self.num_envs)
        result = self.env.step(actions)
        self.executed[done] = _executed(result[-1], actions.shape)
        self.num_done += 1
        return result

    def get_attr(self, name):
        return self.env.get_attr(name)


def _executed(info, shape):
    # Where an episode ended, the step's own info is in final_info.
    executed = np.full(shape, np.nan)
    for source in (info, info.get('final_info', {})):
        if 'executed_action' in source:
            known = source['_executed_action']
            executed[known] = source['executed_action'][known]
    return executed
