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

"""The trainer: rounds of an algorithm; evaluate, log, checkpoint; and resume to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import asdict, dataclass
import fcntl
import logging
import math
from pathlib import Path
import time
from typing import Any

import torch
import yaml

from dpg_robot.contract.model_file import file_signature
from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.learn.checkpoint import load_checkpoint, save_checkpoint, write_atomic
from dpg_robot.learn.device import DEVICES
from dpg_robot.learn.evaluate import evaluate, Evaluation
from dpg_robot.learn.hindsight import Goals
from dpg_robot.learn.learner import LearnerConfig
from dpg_robot.learn.off_policy import OffPolicy
from dpg_robot.learn.on_policy import OnPolicy
from dpg_robot.learn.on_policy_learner import OnPolicyConfig
from dpg_robot.learn.run_log import open_log, Progress, RunLog
from dpg_robot.learn.worlds import DeviceVector, HostWorlds, NoWorlds, require_finite

CHECKPOINT_FILE = 'checkpoint.pt'
CONFIG_FILE = 'config.yaml'
NARROW = 0.25
ALGORITHMS = ('off_policy', 'on_policy')
# What may change when a run is resumed.
MAY_DIFFER = ('trainer.env_steps', 'trainer.workers', 'trainer.cuda_graphs',
              'trainer.checkpoint_every_steps', 'world.robot.model')
# What may differ if it is empty before or after, which means that anything will do.
MAY_BE_EMPTY = ('world.robot.model_hash',)
logger = logging.getLogger('dpg_robot')


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how to train; ``*_steps`` count environment steps of all worlds together.

    :param algorithm: ``off_policy`` learns from a replay, ``on_policy`` from each rollout once.
    :param device: ``cpu``, with MuJoCo's worlds; ``cuda``, where worlds, replay and networks are
        all on the GPU; ``warp_cpu``, the same code as on the GPU on the CPU, slowly, for tests.
    :param env_steps: length of the training.
    :param num_worlds: worlds that are stepped together: some on a CPU, thousands on a GPU.
    :param workers: processes that step the worlds, on ``cpu``; the training is the same with any
        number.
    :param seed: of all random numbers but those of evaluations, which are the same in each.
    :param warmup_steps: off-policy: steps with uniformly random actions before learning starts.
    :param updates_per_step: off-policy: learner updates for each environment step.
    :param replay_capacity: off-policy: transitions to learn from, of which the newest replace the
        oldest; at least ``num_worlds``.
    :param hindsight: off-policy, on ``cpu``: so many transitions are learned from with a goal
        that was reached later, for each with the goal that was asked for; 0 for none.
    :param log_every_steps: how often figures are logged.
    :param eval_every_steps: how often the deterministic policy is evaluated, always in MuJoCo's
        worlds on the CPU; 0 for never.
    :param eval_episodes: episodes of each evaluation.
    :param checkpoint_every_steps: how often a checkpoint is written; the last is at the end.
    :param torch_threads: threads of one torch operation; small networks want 1.
    :param cuda_graphs: on a GPU, record updates as CUDA graphs and replay them.
    """

    algorithm: str = bounded('off_policy', choices=ALGORITHMS)
    device: str = bounded('cpu', choices=DEVICES)
    env_steps: int = bounded(10_000, minimum=1)
    num_worlds: int = bounded(4, minimum=1)
    workers: int = bounded(1, minimum=1)
    seed: int = bounded(0, minimum=0, maximum=2**31 - 1)
    warmup_steps: int = bounded(500, minimum=1)
    updates_per_step: float = bounded(0.5, above=0, maximum=100)
    replay_capacity: int = bounded(1_000_000, minimum=1)
    hindsight: int = bounded(0, minimum=0)
    log_every_steps: int = bounded(200, minimum=1)
    eval_every_steps: int = bounded(1_000, minimum=0)
    eval_episodes: int = bounded(20, minimum=1)
    checkpoint_every_steps: int = bounded(1_000, minimum=1)
    torch_threads: int = bounded(1, minimum=1)
    cuda_graphs: bool = True

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        if self.algorithm == 'off_policy' and self.replay_capacity < self.num_worlds:
            raise SpecError(f'{name}.replay_capacity must be at least num_worlds '
                            f'({self.num_worlds}), got {self.replay_capacity}')
        if self.workers > self.num_worlds:
            raise SpecError(f'{name}.workers must be at most num_worlds ({self.num_worlds}), '
                            f'got {self.workers}')
        if self.device != 'cpu' and self.workers > 1:
            raise SpecError(f'{name}.workers must be 1 for the device {self.device}, which steps '
                            f'all worlds together, got {self.workers}')
        if self.device != 'cpu' and self.hindsight:
            raise SpecError(f'{name}.hindsight must be 0 for the device {self.device}, since a '
                            f"task's rule of rewards runs on the CPU, got {self.hindsight}")
        if self.algorithm == 'on_policy' and self.hindsight:
            raise SpecError(f'{name}.hindsight must be 0 for the algorithm on_policy, which has '
                            f'no replay, got {self.hindsight}')


class Trainer:
    """Train one policy in a vector of worlds.

    Everything that decides the future is in the checkpoint: networks, optimiser, replay, random
    states, and the worlds themselves, so a resumed run equals an uninterrupted one.

    :ivar algorithm: what a round is; :ivar worlds: where it acts.
    """

    def __init__(self, config: TrainerConfig, learner_config: LearnerConfig | OnPolicyConfig,
                 envs, eval_envs, run_dir: Path, identity: dict[str, Any],
                 goals: Goals | None = None,
                 complete: Callable[[dict], dict] = lambda identity: identity,
                 kept: dict[str, Any] | None = None):
        """Start a new training, or resume the one whose checkpoint is in ``run_dir``.

        :param learner_config: its type decides how is learned.
        :param envs: gymnasium vector environment with same-step resets and a ``state`` attribute
            in each world; on a device its worlds (:mod:`dpg_robot.learn.worlds`); None for a
            training that is only looked at, not run.
        :param eval_envs: a gymnasium vector environment, on the CPU whatever the device.
        :param run_dir: folder for checkpoint, metrics and TensorBoard events.
        :param identity: plain data that describes the run, which that of the checkpoint must fit.
        :param goals: those of the worlds, which ``hindsight`` needs.
        :param complete: gives an identity of an earlier version what has been added since.
        :param kept: the identity from now on; None for the same.
        :raises SpecError: if the checkpoint cannot be read, or belongs to another run, or if the
            device has too little memory.
        """
        self.config, self.eval_envs = config, eval_envs
        self.run_dir, self.identity = Path(run_dir), kept or identity
        self._is_redefined = self.identity != identity
        self.run_dir.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(config.torch_threads)
        torch.manual_seed(config.seed)
        self.worlds = self._wrap(envs)
        sizes = (eval_envs.single_observation_space.shape[0],
                 eval_envs.single_action_space.shape[0], eval_envs.get_attr('achieved_goal')[0])
        parts = config, learner_config, self.worlds, *sizes
        self.algorithm = OnPolicy(*parts) if isinstance(learner_config, OnPolicyConfig) \
            else OffPolicy(*parts, goals)
        self.env_steps, self.train_seconds, self.warned = 0, 0.0, False
        self.last_eval: dict[str, Any] | None = None
        self.worlds.reset(config.seed)
        # Before it is read, so that no other one is missed.
        self._saved = file_signature(self.checkpoint_path)
        if self._saved:
            state = load_checkpoint(self.checkpoint_path)
            refuse_other(complete(state['identity']), identity, self.run_dir)
            self._load_state(state)

    def _wrap(self, envs):
        if envs is None:
            return NoWorlds(self.config.num_worlds)
        return HostWorlds(envs) if self.config.device == 'cpu' else DeviceVector(envs)

    @property
    def learner(self) -> torch.nn.Module:
        """Return what learns; its ``policy`` is what the training is for."""
        return self.algorithm.learner

    @property
    def updates(self) -> int:
        """Return how often the learner was updated."""
        return self.algorithm.updates

    @property
    def checkpoint_path(self) -> Path:
        """Return the path of the checkpoint file."""
        return self.run_dir / CHECKPOINT_FILE

    @property
    def finished(self) -> bool:
        """Return whether all environment steps are done."""
        return self.env_steps >= self.config.env_steps

    def run(self, on_progress: Callable[[Progress], None] = lambda progress: None,
            should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until done or told to stop; either way the last act is a checkpoint.

        :return: whether the training is finished.
        :raises SpecError: if another process trains in the same folder, or has since this
            training was opened.
        """
        self._speed = (time.monotonic(), self.env_steps)
        with self._own_run_dir(), open_log(self.run_dir, self.env_steps) as log:
            if self._saved and self._is_redefined:
                self.save()  # as the configuration says from now on
            while not self.finished and not should_stop():
                started = time.monotonic()
                metrics = self.round()
                evaluates, logs, saves = (self._crosses(steps, self.env_steps) for steps in (
                    self.config.eval_every_steps, self.config.log_every_steps,
                    self.config.checkpoint_every_steps))
                if evaluates or logs or saves or self.finished:
                    self.worlds.wait()  # else what the device is behind would not be training
                self.train_seconds += time.monotonic() - started
                if evaluates:
                    self.last_eval = asdict(self.evaluate(self.config.eval_episodes))
                if logs or self.finished:
                    try:
                        self._log(metrics, log, on_progress)
                    except OSError:  # where the log cannot be written, a checkpoint may
                        self.save()
                        raise
                if saves:
                    self.save()
            self.save()
        if self.finished and not self.updates:
            least = 'two rounds of on_policy.horizon steps of each world'
            if self.config.algorithm == 'off_policy':
                least = f'trainer.warmup_steps ({self.config.warmup_steps}), and so many that ' \
                    'trainer.updates_per_step makes one update of them,'
            logger.warning('trainer.env_steps must be at least %s to learn anything, got %d',
                           least, self.config.env_steps)
        return self.finished

    def round(self) -> dict[str, torch.Tensor]:
        """Act and learn once; on a device nothing waits for it.

        :return: scalars to log, perhaps none; nobody asks for them in a round that is not logged.
        """
        after = self.env_steps + self.algorithm.steps_per_round
        logs = self._crosses(self.config.log_every_steps, after) or after >= self.config.env_steps
        metrics = self.algorithm.round(self.env_steps, logs)
        self.env_steps = after
        return metrics

    @contextlib.contextmanager
    def _own_run_dir(self) -> Iterator[None]:
        """Keep other trainings out; until here, nothing in the folder has been touched."""
        with own_folder(self.run_dir):
            if file_signature(self.checkpoint_path) != self._saved:
                raise SpecError(f'{self.checkpoint_path} must be the one that this training began '
                                'with, and another process has written it since: open it anew')
            text = yaml.safe_dump(self.identity, sort_keys=False)
            write_atomic(self.run_dir / CONFIG_FILE, lambda file: file.write(text.encode()))
            yield

    def evaluate(self, episodes: int, seed: int = 1_000_000) -> Evaluation:
        """Evaluate the deterministic policy (eps = 0); no random state of training moves."""
        policy, device = self.learner.policy, self.worlds.device

        def act(obs):
            obs = torch.as_tensor(obs, dtype=torch.float32, device=device)
            with torch.no_grad():
                action = policy(obs, obs.new_zeros(len(obs), policy.action_dim)).cpu()
            require_finite(action, 'the actions of the policy')
            return action.numpy()
        return evaluate(act, self.eval_envs, episodes, seed)

    def save(self) -> None:
        """Write the checkpoint.

        :raises SpecError: if the training has diverged; the last one stays.
        """
        for name, parameter in self.learner.named_parameters():
            if name != 'log_temperature':  # of none it is the logarithm
                require_finite(parameter.detach(), f'the parameters {name}')
        save_checkpoint(self.checkpoint_path, self._state())
        self._saved = file_signature(self.checkpoint_path)

    def close(self) -> None:
        """Release the worlds."""
        self.worlds.close()
        self.eval_envs.close()

    def _crosses(self, interval, env_steps):
        """Return whether the round that ends with so many steps passes a multiple of a number."""
        return interval > 0 and env_steps % interval < self.algorithm.steps_per_round

    def _log(self, metrics: dict, log: RunLog, on_progress) -> None:
        self.worlds.check()
        progress = self._progress()
        metrics = metrics | self.algorithm.measure()
        self._warn(metrics)
        log.write(progress, {'train_seconds': round(self.train_seconds, 3), **metrics})
        on_progress(progress)

    def _warn(self, metrics):
        spread = float(metrics.get('exploration/spread_over_sigma', NARROW))
        if spread < NARROW and not self.warned:
            self.warned = True
            room = 'learner' if self.config.algorithm == 'off_policy' else 'on_policy'
            sigma = self.learner.config.sigma
            logger.warning(
                'exploration must be at least %g of %s.sigma (%g), or noise drowns it, '
                'got %.2g: lower %s.sigma, or raise %s.min_std or the entropy',
                NARROW, room, sigma, spread, room, room)

    def _progress(self):
        now, (then, steps) = time.monotonic(), self._speed
        speed = (self.env_steps - steps) / max(now - then, 1e-9)
        self._speed = (now, self.env_steps)
        last = self.last_eval or {'return_mean': math.nan, 'success': None}
        eval_success = math.nan if last['success'] is None else last['success']
        left = self.config.env_steps - self.env_steps
        return Progress(self.env_steps, self.config.env_steps, self.updates,
                        *self.worlds.episodes(), last['return_mean'], eval_success, speed,
                        max(left, 0) / max(speed, 1e-9))

    def _state(self):
        device = self.worlds.device
        return {'identity': self.identity, 'env_steps': self.env_steps,
                'last_eval': self.last_eval, 'train_seconds': self.train_seconds,
                'algorithm': self.algorithm.state_dict(), 'worlds': self.worlds.state_dict(),
                'torch_rng': torch.get_rng_state(), 'device_rng':
                torch.cuda.get_rng_state(device) if device.type == 'cuda' else None}

    def _load_state(self, state):
        # The last round of all worlds may overshoot by less than a round.
        if state['env_steps'] >= self.config.env_steps + self.algorithm.steps_per_round:
            raise SpecError(f'trainer.env_steps must be at least {state["env_steps"]}, the steps '
                            f'already taken in {self.run_dir}, got {self.config.env_steps}')
        for name in ('env_steps', 'last_eval', 'train_seconds'):
            setattr(self, name, state[name])
        self.algorithm.load_state_dict(state['algorithm'])
        self.worlds.load_state_dict(state['worlds'])
        torch.set_rng_state(state['torch_rng'])
        if self.worlds.device.type == 'cuda':
            torch.cuda.set_rng_state(state['device_rng'], self.worlds.device)


@contextlib.contextmanager
def own_folder(run_dir: Path, name: str = 'lock') -> Iterator[None]:
    """Keep other processes from training in a folder.

    :param name: of the file to lock.
    :raises SpecError: if one does.
    """
    with open(run_dir / name, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except OSError:
            raise SpecError(f'{run_dir} must have one training at a time, and another process '
                            'trains there') from None
        yield


def refuse_other(old: dict, new: dict, run_dir: Path, name: str = '') -> None:
    """Refuse to continue a run as another one, but for what may differ.

    :param old: plain data that describes the run in ``run_dir``; ``new`` what was asked for.
    :raises SpecError: naming the first key that differs.
    """
    for key in [*old, *(key for key in new if key not in old)]:
        full = f'{name}.{key}' if name else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            refuse_other(before, after, run_dir, full)
        elif full in MAY_BE_EMPTY and not (before and after):
            continue
        elif before != after and full not in MAY_DIFFER:
            raise SpecError(f'{full} must be {before}, as the training in {run_dir} began with, '
                            f'got {after}')
