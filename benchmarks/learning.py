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

"""How fast each estimator learns a task, beside Stable-Baselines3's SAC in the same run.

    .venv/bin/pip install -r requirements/bench.txt -c requirements/constraints.txt
    .venv/bin/python benchmarks/learning.py fetch_reach

The peers, each in one world rather than several: ``sb3_sac`` with the library's defaults, and
``sb3_sac_matched`` with our discount, reward scale, batch, network sizes and updates per step;
``sb3_sac_her`` and ``sb3_sac_her_matched`` likewise, with hindsight, for tasks with goals.

Learners take turns seed by seed, so that a change in the machine's speed meets all of them. Time
is that of collecting and learning, without evaluation. Finished runs are kept in ``--run-dir``,
by settings and code, so that a stopped benchmark goes on where it was; times are then those of
several occasions.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from fractions import Fraction
import functools
from importlib import metadata
from importlib.util import find_spec
import json
import os
from pathlib import Path
import sys
import tempfile
import time

import gymnasium
import numpy as np

from dpg_robot.bench.cache import cached, digest, source
from dpg_robot.bench.figures import interval
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import commit, EVAL_ENVS, load_config, machine, open_trainer, versions
import dpg_robot.learn
from dpg_robot.learn.evaluate import evaluate
from dpg_robot.learn.hindsight import goals_of
from dpg_robot.sim.world import make_vector, make_world

RESULTS = Path(__file__).parent / 'results'
ROOM = Path(dpg_robot.learn.__file__).parents[1]
CODE = ROOM / 'learn', ROOM / 'sim', Path(__file__)
FINAL_SEED = 2_000_000
PEER, LIBRARY = 'sb3_sac', 'stable-baselines3'
MOST_STEPS_BETWEEN_UPDATES = 64


def kept(run, folder, config, name, seed, steps, episodes):
    """Return the figures of a finished run, after running it if it is not among those kept."""
    key = digest([dump(config), steps, episodes, versions_with([name]), source(*CODE)])
    return cached(folder / f'{config.world.task}-{name}-{seed}-{key}.pt', run)


def versions_with(names):
    """Return the versions that the figures of these learners depend on."""
    is_with_peer = any(name.startswith(PEER) for name in names)
    return versions() | ({LIBRARY: metadata.version(LIBRARY)} if is_with_peer else {})


def run_ours(config, name, seed, steps, episodes):
    """Train one estimator; return its curve, final evaluation and seconds of training."""
    # Reported as often as evaluated, so that an evaluation is told at the step it belongs to.
    config = replace(config, trainer=replace(config.trainer, seed=seed, env_steps=steps,
                                             log_every_steps=config.trainer.eval_every_steps))
    curve, newest = [], None

    def note(progress):
        nonlocal newest
        if trainer.last_eval is not newest:  # the last report may come without a new one
            newest = trainer.last_eval
            curve.append((progress.env_steps, newest['success'], newest['return_mean']))

    with tempfile.TemporaryDirectory() as folder:
        trainer = open_trainer(config, Path(folder) / 'run', resume=False)
        trainer.run(note)
        final = trainer.evaluate(episodes, FINAL_SEED)
        trainer.close()
    return {'seed': seed, 'curve': curve, 'final': asdict(final),
            'updates_per_step': trainer.updates / steps,
            'seconds_per_env_step': trainer.train_seconds / steps}


class GoalView(gymnasium.ObservationWrapper):
    """A world with goals as the library wants it: observations in three parts, and the rule."""

    def __init__(self, world):
        """Take a world with physical observations."""
        super().__init__(world)
        self.goals = goals_of(world)
        self.parts = {'observation': np.setdiff1d(
            np.arange(world.observation_space.shape[0]), self.goals.desired),
            'achieved_goal': self.goals.achieved, 'desired_goal': self.goals.desired}
        self.observation_space = gymnasium.spaces.Dict({
            name: gymnasium.spaces.Box(-np.inf, np.inf, (len(places),), np.float64)
            for name, places in self.parts.items()})

    def observation(self, observation):
        """Return the parts of an observation, or of several, shape (..., obs_dim)."""
        return {name: observation[..., places] for name, places in self.parts.items()}

    def compute_reward(self, achieved, desired, info):
        """Return the rewards of these goals, shape (B,)."""
        return self.goals.rule(achieved, desired)[0]


class ScaledRewards(gymnasium.Wrapper):
    """Rewards times a factor, in hindsight too."""

    def __init__(self, env, factor):
        """Take the factor."""
        super().__init__(env)
        self.factor = factor

    def step(self, action):
        """Advance one control period."""
        obs, reward, *rest = self.env.step(action)
        return obs, self.factor * reward, *rest

    def compute_reward(self, achieved, desired, info):
        """Return the rewards of these goals, shape (B,)."""
        return self.factor * self.env.compute_reward(achieved, desired, info)


def run_sac(config, name, seed, steps, episodes):
    """Train Stable-Baselines3's SAC in the same world; return the same figures."""
    from stable_baselines3 import HerReplayBuffer, SAC
    from stable_baselines3.common.callbacks import BaseCallback
    learner, env, view, settings = config.learner, make_world(config.world), None, {}
    if 'her' in name:
        env = view = GoalView(env)
        # It can relabel nothing before the first episode's end.
        settings = {'replay_buffer_class': HerReplayBuffer, 'learning_starts': max(
            100, env.get_wrapper_attr('episode_steps'))}
    if name.endswith('matched'):
        env = ScaledRewards(env, learner.reward_scale)
        settings |= {'gamma': learner.gamma, 'batch_size': learner.batch_size,
                     'policy_kwargs': {'net_arch': list(learner.hidden)},
                     **update_rhythm(config.trainer.updates_per_step)}
    kind = 'MultiInputPolicy' if view else 'MlpPolicy'
    _choose_threads(lambda: SAC(kind, env, **settings))
    model = SAC(kind, env, seed=seed, **settings)
    envs, curve = make_vector(config.world, EVAL_ENVS), []

    class Curve(BaseCallback):
        paused = 0.0

        def _on_step(self):
            if self.num_timesteps % config.trainer.eval_every_steps == 0:
                start = time.monotonic()
                result = measure(config.trainer.eval_episodes, 1_000_000)
                curve.append((self.num_timesteps, result.success, result.return_mean))
                self.paused += time.monotonic() - start
            return True

    def measure(count, first_seed):
        def act(obs):
            return model.predict(view.observation(obs) if view else obs, deterministic=True)[0]
        return evaluate(act, envs, count, first_seed)

    callback, start = Curve(), time.monotonic()
    model.learn(steps, callback=callback)
    seconds = time.monotonic() - start - callback.paused
    final = measure(episodes, FINAL_SEED)
    envs.close()
    return {'seed': seed, 'curve': curve, 'final': asdict(final),
            'updates_per_step': model._n_updates / steps,
            'seconds_per_env_step': seconds / steps}


def update_rhythm(updates_per_step):
    """Return after how many steps the library makes how many updates, both whole numbers."""
    most = max(MOST_STEPS_BETWEEN_UPDATES, round(1 / updates_per_step))
    ratio = Fraction(updates_per_step).limit_denominator(most)
    return {'train_freq': ratio.denominator, 'gradient_steps': ratio.numerator}


def _choose_threads(make):
    """Give the peer the number of torch threads with which it is fastest here."""
    import torch
    seconds = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        model = make()
        model.learn(150)  # the first 100 steps do not learn
        start = time.monotonic()
        model.learn(100, reset_num_timesteps=False)
        seconds[threads] = time.monotonic() - start
    torch.set_num_threads(min(seconds, key=seconds.get))


def summarise(runs):
    """Return means over seeds, with Student's 95 % interval of each mean; null for one seed.

    That of success is cut off at 0 and 1, and has no width where all seeds succeed equally often.
    """
    returns = np.array([run['final']['return_mean'] for run in runs])
    speeds = [run['seconds_per_env_step'] for run in runs]
    return {
        'success': _summarise_success([run['final'] for run in runs]),
        'return': {'mean': float(returns.mean()), 'interval': interval(returns)},
        'seconds_per_env_step': {'median': float(np.median(speeds)), 'all': speeds},
        'runs': runs}


def _summarise_success(finals):
    if finals[0]['success'] is None:  # the task knows none
        return None
    rates = np.array([final['success'] for final in finals])
    ends = interval(rates)
    return {'mean': float(rates.mean()), 'min': float(rates.min()),
            'interval': ends and np.clip(ends, 0.0, 1.0).tolist(),
            'episodes': sum(final['episodes'] for final in finals)}


def plot(result, path):
    """Draw the return against environment steps, and success where a task knows it."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    has_success = all(entry['success'] for entry in result['estimators'].values())
    columns = {'success': 1, 'return': 2} if has_success else {'return': 2}
    figure, panels = plt.subplots(1, len(columns), figsize=(4 + 4 * len(columns), 3.2),
                                  layout='constrained', squeeze=False)
    for axes, (height, column) in zip(panels[0], columns.items()):
        for name, entry in result['estimators'].items():
            curves = np.array([run['curve'] for run in entry['runs']], float)
            steps, values = curves[0, :, 0], curves[:, :, column]
            line, = axes.plot(steps, values.mean(0), label=name,
                              linestyle='--' if name.startswith(PEER) else '-')
            axes.fill_between(steps, values.min(0), values.max(0), alpha=0.15,
                              color=line.get_color())
        axes.set(xlabel='environment steps', ylabel=height)
        axes.grid(alpha=0.3)
    figure.suptitle(f'{result["task"]}, actuator noise {result["noise"]["actuator"]}, '
                    f'{result["seeds"]} seeds (mean, range)', fontsize='medium')
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside right upper')
    figure.savefig(path, dpi=110)


def main():
    """Run all learners and write results/learning_TASK.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('task', nargs='?', default='fetch_reach')
    parser.add_argument('--learners', nargs='+', default=[
        'doubly_robust', 'denoising', 'critic', 'sb3_sac', 'sb3_sac_matched'])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=10_000)
    parser.add_argument('--episodes', type=int, default=100)
    parser.add_argument('--run-dir', type=Path, default=Path('runs/learning'))
    parser.add_argument('--output', type=Path, help='JSON file; the plot lies beside it')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change any key of the YAML: learner.sigma=0.3')
    options = parser.parse_args()
    peers = [name for name in options.learners if name.startswith(PEER)]
    if peers and not find_spec('stable_baselines3'):
        parser.error('the peers need: .venv/bin/pip install -r requirements/bench.txt '
                     '-c requirements/constraints.txt')
    source(*CODE)
    try:
        configs = {name: load_config(options.task, options.set if name in peers else
                                     [*options.set, f'estimator={name}'])
                   for name in options.learners}
    except SpecError as error:
        parser.error(str(error))
    every = next(iter(configs.values())).trainer.eval_every_steps
    if not 1 <= every <= options.steps:
        parser.error('trainer.eval_every_steps must be 1 to --steps '
                     f'({options.steps}), else there is no curve; got {every}')
    runs = {name: [] for name in options.learners}
    for seed in range(options.seeds):
        for name, config in configs.items():
            what = config, name, seed, options.steps, options.episodes
            start = functools.partial(run_sac if name in peers else run_ours, *what)
            run = kept(start, options.run_dir, *what)
            runs[name].append(run)
            success = run['final']['success']
            print(f'{name:16} seed {seed}: '
                  + ('' if success is None else f'success {success:.2f}, ')
                  + f'return {run["final"]["return_mean"]:.2f}, '
                  f'{1e3 * run["seconds_per_env_step"]:.2f} ms per step', flush=True)
    result = {
        'task': options.task, 'noise': asdict(next(iter(configs.values())).world.noise),
        'env_steps': options.steps, 'seeds': options.seeds,
        'command': 'benchmarks/learning.py ' + ' '.join(sys.argv[1:]),
        'versions': versions_with(options.learners),
        'machine': machine(), 'commit': commit(),
        'estimators': {name: summarise(entry) for name, entry in runs.items()}}
    path = options.output or RESULTS / f'learning_{options.task}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n')
    plot(result, path.with_suffix('.png'))
    print(f'wrote {path}')


if __name__ == '__main__':
    main()
