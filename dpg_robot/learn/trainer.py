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

"""The trainer: collect, learn, evaluate, log, checkpoint; and resume to the bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import contextlib
from dataclasses import asdict, dataclass
import fcntl
import json
import logging
import math
from pathlib import Path
import time
from typing import Any

import numpy as np
import torch
import yaml

from dpg_robot.contract.strict import bounded, SpecError
from dpg_robot.learn.checkpoint import load_checkpoint, save_checkpoint, write_atomic
from dpg_robot.learn.evaluate import evaluate, Evaluation
from dpg_robot.learn.hindsight import Goals, HindsightReplay
from dpg_robot.learn.learner import Learner, LearnerConfig
from dpg_robot.learn.replay import Batch, hold_out, Replay, RUN

CHECKPOINT_FILE = 'checkpoint.pt'
CONFIG_FILE = 'config.yaml'
METRICS_FILE = 'metrics.jsonl'
RECENT_EPISODES = 20
HELD_OUT_EVERY = 20
HELD_OUT_BATCH = 1024
MIN_HELD_OUT = 50
NARROW = 0.25
logger = logging.getLogger('dpg_robot')


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how to train; ``*_steps`` count environment steps of all worlds together.

    :param warmup_steps: steps with uniformly random actions before learning starts.
    :param updates_per_step: learner updates for each environment step.
    :param workers: processes that step the worlds; the training is the same with any number.
    :param hindsight: so many transitions are learned from with a goal that was reached later, for
        each with the goal that was asked for; 0 for none.
    :param eval_every_steps: how often the deterministic policy is evaluated; 0 for never.
    :param torch_threads: threads of one torch operation; small networks want 1.
    """

    env_steps: int = bounded(10_000, minimum=1)
    num_envs: int = bounded(4, minimum=1)
    workers: int = bounded(1, minimum=1)
    seed: int = bounded(0, minimum=0, maximum=2**31 - 1)
    warmup_steps: int = bounded(500, minimum=1)
    updates_per_step: float = bounded(0.5, above=0)
    replay_capacity: int = bounded(1_000_000, minimum=1)
    hindsight: int = bounded(0, minimum=0)
    log_every_steps: int = bounded(200, minimum=1)
    eval_every_steps: int = bounded(1_000, minimum=0)
    eval_episodes: int = bounded(20, minimum=1)
    checkpoint_every_steps: int = bounded(1_000, minimum=1)
    torch_threads: int = bounded(1, minimum=1)

    def check(self, name: str) -> None:
        """Check the rules that span fields.

        :raises SpecError: naming the key, the rule and the value.
        """
        if self.replay_capacity < self.num_envs:
            raise SpecError(f'{name}.replay_capacity must be at least num_envs ({self.num_envs}), '
                            f'got {self.replay_capacity}')
        if self.workers > self.num_envs:
            raise SpecError(f'{name}.workers must be at most num_envs ({self.num_envs}), '
                            f'got {self.workers}')


@dataclass(frozen=True)
class Progress:
    """What a training reports while it runs; NaN where nothing is known, or there is none.

    :param episode_return: mean over the newest training episodes, noise and exploration included;
        likewise ``success``.
    :param eval_success: of the deterministic policy, at the newest evaluation; likewise
        ``eval_return``.
    """

    env_steps: int
    total_steps: int
    updates: int
    episode_return: float
    success: float
    eval_return: float
    eval_success: float
    steps_per_second: float
    remaining_s: float


class Trainer:
    """Train one policy in a vector of worlds.

    Everything that decides the future is in the checkpoint: networks, optimiser, replay, random
    states, and the worlds themselves, so a resumed run equals an uninterrupted one.
    """

    def __init__(self, config: TrainerConfig, learner_config: LearnerConfig, envs, eval_envs,
                 run_dir: Path, identity: dict[str, Any], goals: Goals | None = None):
        """Start a new training, or resume the one whose checkpoint is in ``run_dir``.

        :param envs: gymnasium vector environment with same-step resets and a ``state`` attribute
            in each world; ``eval_envs`` likewise.
        :param run_dir: folder for checkpoint, metrics and TensorBoard events.
        :param identity: plain data that describes the run, kept in the checkpoint.
        :param goals: those of the worlds, which ``hindsight`` needs.
        :raises SpecError: if the checkpoint cannot be read, or belongs to another run.
        """
        self.config, self.envs, self.eval_envs = config, envs, eval_envs
        self.run_dir, self.identity = Path(run_dir), identity
        self.run_dir.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(config.torch_threads)
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        obs_dim = envs.single_observation_space.shape[0]
        action_dim = envs.single_action_space.shape[0]
        self.learner = Learner(learner_config, obs_dim, action_dim,
                               envs.get_attr('achieved_goal')[0])
        capacity = min(config.replay_capacity, config.env_steps + config.num_envs)
        sizes = (capacity, obs_dim, action_dim)
        if config.hindsight:
            if goals is None:
                raise SpecError('trainer.hindsight must be 0 where the goals are not given, '
                                f'got {config.hindsight}')
            self.replay = HindsightReplay(*sizes, config.num_envs, goals, config.hindsight)
        else:
            self.replay = Replay(*sizes)
        self.env_steps, self.updates, self.updates_due = 0, 0, 0.0
        self.running_return = np.zeros(config.num_envs)
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT_EPISODES)
        self.last_eval: dict[str, Any] | None = None
        self.train_seconds, self.warned = 0.0, False
        # Far from the small numbers that evaluations take for seeds.
        seeds = np.random.SeedSequence(config.seed).generate_state(config.num_envs)
        self.obs, _ = envs.reset(seed=[int(seed) for seed in seeds])
        if self.checkpoint_path.exists():
            self._load_state(load_checkpoint(self.checkpoint_path))

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
        :raises SpecError: if another process trains in the same folder.
        """
        # Imported here: TensorBoard takes a second that evaluation and export need not pay.
        from torch.utils.tensorboard import SummaryWriter
        self._speed = (time.monotonic(), self.env_steps)
        with self._own_run_dir(), SummaryWriter(
                self.run_dir / 'tensorboard', purge_step=self.env_steps) as writer:
            while not self.finished and not should_stop():
                started = time.monotonic()
                self._collect()
                metrics = self._learn()
                self.train_seconds += time.monotonic() - started
                if self._crossed(self.config.eval_every_steps):
                    self.last_eval = asdict(self.evaluate(self.config.eval_episodes))
                if self._crossed(self.config.log_every_steps) or self.finished:
                    self._log(metrics, writer, on_progress)
                if self._crossed(self.config.checkpoint_every_steps):
                    self.save()
            self.save()
        return self.finished

    @contextlib.contextmanager
    def _own_run_dir(self):
        """Keep other trainings out; until here, nothing in the folder has been touched."""
        with open(self.run_dir / 'lock', 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
            except OSError:
                raise SpecError(f'{self.run_dir} must have one training at a time, and another '
                                'process trains there') from None
            text = yaml.safe_dump(self.identity, sort_keys=False)
            write_atomic(self.run_dir / CONFIG_FILE, lambda file: file.write(text.encode()))
            self._trim_metrics()
            yield

    def evaluate(self, episodes: int, seed: int = 1_000_000) -> Evaluation:
        """Evaluate the deterministic policy (eps = 0); no random state of training moves."""
        def act(obs):
            obs = torch.as_tensor(obs, dtype=torch.float32)
            with torch.no_grad():
                eps = torch.zeros(len(obs), self.learner.action_dim)
                return self.learner.policy(obs, eps).numpy()
        return evaluate(act, self.eval_envs, episodes, seed)

    def save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(self.checkpoint_path, self._state())

    def close(self) -> None:
        """Release the worlds."""
        self.envs.close()
        self.eval_envs.close()

    def _collect(self):
        """Take one step in every world and remember it."""
        action, log_prob = self._explore()
        obs, reward, terminated, truncated, info = self.envs.step(action)
        self.running_return += reward
        # Truncation is not termination: bootstrap from the true last observation.
        next_obs = obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            next_obs[i] = info['final_obs'][i]
            final = info['final_info']  # some tasks know no success
            success = float(final['is_success'][i]) if 'is_success' in final else np.nan
            self.recent.append((float(self.running_return[i]), success))
            self.running_return[i] = 0.0
        batch = Batch(*(torch.as_tensor(x, dtype=torch.float32)
                        for x in (self.obs, action, reward, next_obs, terminated,
                                  self._held_out(), log_prob)))
        self.replay.add(batch)
        if self.config.hindsight:
            self.replay.end_episodes(torch.as_tensor(terminated | truncated))
        self.learner.observe(batch)
        self.obs = obs
        self.env_steps += self.config.num_envs

    def _held_out(self):
        step, worlds = self.env_steps // self.config.num_envs, torch.arange(self.config.num_envs)
        # A small ring could come to hold nothing but held-out transitions.
        least = RUN * HELD_OUT_EVERY * self.config.num_envs
        return hold_out(step + RUN * worlds, HELD_OUT_EVERY) \
            if self.config.replay_capacity >= least else torch.zeros(len(worlds))

    def _explore(self):
        if self.env_steps < self.config.warmup_steps:
            shape = (self.config.num_envs, self.learner.action_dim)
            log_prob = np.full(self.config.num_envs, -shape[1] * math.log(2.0))
            return self.rng.uniform(-1, 1, shape).astype(np.float32), log_prob
        with torch.no_grad():
            obs = torch.as_tensor(self.obs, dtype=torch.float32)
            action = self.learner.policy.sample(obs)[0]
            # Computed as it will be again, near saturation too: the same policy has weight 1.
            return action.numpy(), self.learner.policy.log_prob(obs, action).numpy()

    def _learn(self):
        metrics = {}
        if self.env_steps >= self.config.warmup_steps:
            self.updates_due += self.config.updates_per_step * self.config.num_envs
            while self.updates_due >= 1:
                metrics = self.learner.update(self.replay.sample(self.learner.config.batch_size))
                self.updates_due -= 1
                self.updates += 1
        return metrics

    def _crossed(self, interval):
        """Return whether the newest steps passed a multiple of ``interval``."""
        return interval > 0 and self.env_steps % interval < self.config.num_envs

    def _log(self, metrics, writer, on_progress):
        progress = self._progress()
        metrics = metrics | self._measure()
        self._warn(metrics)
        row = {**asdict(progress), 'train_seconds': round(self.train_seconds, 3),
               **{name: float(value) for name, value in metrics.items()}}
        with open(self.run_dir / METRICS_FILE, 'a') as file:
            plain = {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON has no NaN
            file.write(json.dumps(plain) + '\n')
        for name, value in row.items():
            tag = name if '/' in name else f'training/{name}'
            writer.add_scalar(tag, value, self.env_steps)
        on_progress(progress)

    def _measure(self):
        """Return the learner's figures on transitions that it has not learned from."""
        unseen = self.replay.held_out(HELD_OUT_BATCH)
        if self.updates == 0 or len(unseen.reward) < MIN_HELD_OUT:
            return {}
        with torch.random.fork_rng(devices=[]):  # looking must not change the training
            return self.learner.measure(unseen)

    def _warn(self, metrics):
        spread = float(metrics.get('exploration/spread_over_sigma', NARROW))
        if spread < NARROW and not self.warned:
            self.warned = True
            sigma = self.learner.config.sigma
            logger.warning(
                'exploration must be at least %g of learner.sigma (%g), or noise drowns it, '
                'got %.2g: lower learner.sigma, or raise learner.min_std or the entropy',
                NARROW, sigma, spread)

    def _progress(self):
        now, (then, steps) = time.monotonic(), self._speed
        speed = (self.env_steps - steps) / max(now - then, 1e-9)
        self._speed = (now, self.env_steps)
        returns, successes = zip(*self.recent) if self.recent else ((np.nan,), (np.nan,))
        last = self.last_eval or {'return_mean': np.nan, 'success': None}
        eval_success = np.nan if last['success'] is None else last['success']
        left = self.config.env_steps - self.env_steps
        return Progress(
            self.env_steps, self.config.env_steps, self.updates, float(np.mean(returns)),
            float(np.mean(successes)), last['return_mean'], eval_success, speed,
            max(left, 0) / max(speed, 1e-9))

    def _trim_metrics(self):
        """Forget the rows that a killed run logged after its last checkpoint."""
        path = self.run_dir / METRICS_FILE
        rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)['env_steps'] <= self.env_steps:
                    rows.append(line + '\n')
            except json.JSONDecodeError:  # a row cut short by the kill
                continue
        write_atomic(path, lambda file: file.write(''.join(rows).encode()))

    def _state(self):
        return {'identity': self.identity, 'learner': self.learner.state_dict(),
                'optimizer': self.learner.optimizer.state_dict(),
                'replay': self.replay.state_dict(), 'env_steps': self.env_steps,
                'updates': self.updates, 'updates_due': self.updates_due,
                'running_return': self.running_return.copy(), 'recent': list(self.recent),
                'last_eval': self.last_eval, 'train_seconds': self.train_seconds,
                'obs': self.obs.copy(), 'worlds': list(self.envs.get_attr('state')),
                'rng': self.rng.bit_generator.state, 'torch_rng': torch.get_rng_state()}

    def _load_state(self, state):
        refuse_other(state['identity'], self.identity, self.run_dir)
        # The last round of all worlds may overshoot by less than num_envs.
        if state['env_steps'] >= self.config.env_steps + self.config.num_envs:
            raise SpecError(f'trainer.env_steps must be at least {state["env_steps"]}, the steps '
                            f'already taken in {self.run_dir}, got {self.config.env_steps}')
        self.learner.load_state_dict(state['learner'])
        self.learner.optimizer.load_state_dict(state['optimizer'])
        self.replay.load_state_dict(state['replay'])
        for name in ('env_steps', 'updates', 'updates_due', 'running_return', 'last_eval',
                     'train_seconds', 'obs'):
            setattr(self, name, state[name])
        self.recent.extend(state['recent'])
        self.envs.set_attr('state', state['worlds'])
        self.rng.bit_generator.state = state['rng']
        torch.set_rng_state(state['torch_rng'])


def refuse_other(old: dict, new: dict, run_dir: Path, name: str = '') -> None:
    """Refuse to continue a run as another one.

    Only ``trainer.env_steps`` and ``trainer.workers`` may differ.

    :param old: plain data that describes the run in ``run_dir``; ``new`` what was asked for.
    :raises SpecError: naming the first key that differs.
    """
    for key in [*old, *(key for key in new if key not in old)]:
        full = f'{name}.{key}' if name else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            refuse_other(before, after, run_dir, full)
        elif before != after and full not in ('trainer.env_steps', 'trainer.workers'):
            raise SpecError(f'{full} must be {before}, as the training in {run_dir} began with, '
                            f'got {after}')
