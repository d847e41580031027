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

"""Measure every estimator of g(s, a) against the true gradient: dpg-robot bench gradient.

All estimators get the same transitions and the same fixed target. There are two disjoint
replicas of the transitions, collected side by side by the same policy, so that bias and variance
can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
import multiprocessing
import os
from pathlib import Path
import sys
import threading
from typing import Any

import numpy as np
import torch

import dpg_robot
from dpg_robot.bench.cache import cached, digest, source
from dpg_robot.bench.collect import (
    collect,
    Collection,
    collector_config,
    CRITIC_FIELDS,
    NUM_REPLICAS,
    TRAINER_FIELDS,
)
from dpg_robot.bench.figures import add_gains, compare, describe_truth, summarise
from dpg_robot.bench.truth import check_pairs, measure_truth, Truth
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import commit, ExperimentConfig, load_config, machine, versions
from dpg_robot.learn.checkpoint import CHECKPOINT_VERSION, load_checkpoint, save_checkpoint
from dpg_robot.learn.estimators import check_achieved_goal, check_outcome
from dpg_robot.learn.fit import REPLACED, SETTINGS
from dpg_robot.learn.gradient_config import GradientConfig
from dpg_robot.sim.world import make_world

FRACTIONS = (4, 2, 1)
ROOM = Path(dpg_robot.__file__).parent
SWEEPS = {'noise': 'world.noise.actuator', 'dead_actuators': 'world.dead_actuators'}
# fit(learner config, names, data, policy, value, seed, places of the achieved goal) gives for each
# name a function of physical obs (n, obs_dim) and action (n, action_dim).
Fit = Callable[..., dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]


@dataclass(frozen=True)
class GradientBench:
    """What to measure, and how hard.

    :param transitions: in each of the two replicas.
    :param states: where the truth is measured; ``pairs`` antithetic noise draws at each.
    :param jobs: processes, which share out the seeds.
    :param fractions: estimators are fitted on the newest half (2), quarter (4), all (1).
    :param run_dir: keeps transitions, truths and fits, so that a stopped benchmark goes on.
    """

    estimators: tuple[str, ...]
    transitions: int = 20_000
    seeds: int = 3
    states: int = 600
    pairs: int = 300
    jobs: int = 1
    fractions: tuple[int, ...] = FRACTIONS
    run_dir: Path = Path('runs/bench')


def load_measured(task: str | Path, overrides: list[str] = ()) -> ExperimentConfig:
    """Read the YAML of an experiment to measure; see :func:`~dpg_robot.experiment.load_config`.

    :raises SpecError: also if an override would do nothing: of the learner, only what the
        estimators are fitted with counts, and what the critic that collects learns with.
    """
    counts = {field.name for field in fields(GradientConfig)}.difference(REPLACED) \
        .union(CRITIC_FIELDS)
    for override in overrides:
        key = override.partition('=')[0]
        section, _, setting = key.rpartition('.')
        if key == 'estimator' or section == 'on_policy' or (
                section == 'learner' and setting not in counts):
            raise SpecError('an override of the learner must be among what is measured, '
                            f'{", ".join(sorted(counts))}, got {override}')
        if section == 'trainer' and setting not in TRAINER_FIELDS:
            raise SpecError('an override of the trainer must be among what collects, '
                            f'{", ".join(TRAINER_FIELDS)}, got {override}')
    # Which estimator the file trains with does not matter; with a critic all else is allowed.
    return load_config(task, [*overrides, 'learner.estimator=critic'])


def bench_gradient(config: ExperimentConfig, bench: GradientBench, fit: Fit) -> dict[str, Any]:
    """Measure estimators on several numbers of the newest transitions.

    :return: plain data: the truth's and the estimators' figures as
        :func:`dpg_robot.bench.figures.summarise` gives them.
    :raises SpecError: if the world or the numbers do not allow it.
    """
    _check(config, bench)
    counts = tuple(sorted(
        {bench.transitions // fraction for fraction in (1, *bench.fractions)} - {0}))
    seeds = _measure([(config, bench, seed, counts, fit) for seed in range(bench.seeds)],
                     bench.jobs)
    by_transitions = {str(count): _summarise(seeds, count, bench.estimators) for count in counts}
    return {**_describe(config, bench), 'truth': _summarise_truth(seeds),
            'estimators': by_transitions[str(bench.transitions)],
            'by_transitions': by_transitions}


def sweep_gradient(task: str, overrides: list[str], key: str, values: list[str],
                   bench: GradientBench, fit: Fit) -> dict[str, Any]:
    """Measure estimators in a series of worlds, on all transitions.

    :param key: what differs, one of ``SWEEPS``; the result has a row for each of ``values``.
    :raises SpecError: if the task, the key or a value is wrong.
    """
    if key not in SWEEPS or not values:
        raise SpecError(f'a sweep must be {" or ".join(SWEEPS)} and its values, '
                        f'got {" ".join([key, *values])}')
    configs = [load_measured(task, [*overrides, f'{SWEEPS[key]}={value}']) for value in values]
    for config in configs:
        _check(config, bench)
    counts = (bench.transitions,)
    results = _measure([(config, bench, seed, counts, fit) for config in configs
                        for seed in range(bench.seeds)], bench.jobs)
    rows = []
    for i, config in enumerate(configs):
        seeds = results[i * bench.seeds:(i + 1) * bench.seeds]
        rows.append({key: float(values[i]), 'truth': _summarise_truth(seeds),
                     'estimators': _summarise(seeds, bench.transitions, bench.estimators)})
    description = _describe(configs[0], bench)
    del description[key]
    return {**description, 'sweep': key, 'rows': rows}


def _check(config, bench):
    """Check what can be checked before hours are spent."""
    world = make_world(config.world)
    check_pairs(bench.pairs, world.action_space.shape[0])
    for name in bench.estimators:
        check_outcome('learner', name, config.learner.outcome)
    check_achieved_goal('learner', config.learner.outcome, world.achieved_goal)


def _describe(config, bench):
    return {'task': config.world.task, 'noise': asdict(config.world.noise),
            'dead_actuators': config.world.dead_actuators, 'transitions': bench.transitions,
            'seeds': bench.seeds, 'states': bench.states, 'pairs': bench.pairs,
            'learner': {name: value for name, value in dump(config.learner).items()
                        if name not in REPLACED}, 'fit': SETTINGS, 'versions': versions(),
            'machine': machine(), 'commit': commit()}


def _summarise(seeds, count, names):
    return {name: summarise([seed['figures'][count][name] for seed in seeds]) for name in names}


def _summarise_truth(seeds):
    return summarise([seed['truth'] for seed in seeds])


def _measure(tasks, jobs):
    if jobs == 1:
        return [measure_seed(*task) for task in tasks]
    spawn = multiprocessing.get_context('spawn')  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(tasks)), spawn, _end_with_parent) as pool:
        return list(pool.map(measure_seed, *zip(*tasks)))


def _end_with_parent():
    """Let this process not go on for hours when the one that started it is killed."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def measure_seed(config: ExperimentConfig, bench: GradientBench, seed: int,
                 counts: tuple[int, ...], fit: Fit) -> dict[str, Any]:
    """Collect, measure the truth and fit both replicas; take what an earlier run has stored.

    :param counts: numbers of transitions to fit on, the newest ones.
    :return: ``truth``, and ``figures`` by count and estimator.
    """
    torch.set_num_threads(1)  # small networks want no more, and other seeds run beside this one
    version = digest([dump(config.learner), source(ROOM / 'learn')])
    collector = collector_config(config, bench.transitions, seed)
    folder = bench.run_dir / f'{config.world.task}-{digest(_collector_key(collector))}'

    def transitions():
        _note(f'{folder}, seed {seed}: collecting {NUM_REPLICAS} x {bench.transitions} '
              'transitions')
        return collect(collector)

    def measured_truth():
        _note(f'{folder}, seed {seed}: measuring the truth at {bench.states} states')
        return measure_truth(collector, collection, bench.states, bench.pairs, seed)

    collection = cached(folder / 'collection.pt', transitions)
    size = f'{bench.states}-{bench.pairs}'
    truth = cached(folder / f'truth-{size}.pt', measured_truth)
    fits = folder / f'fits-{size}-{version}'
    num_live = truth.action.shape[1] - config.world.dead_actuators
    figures = {}
    for count in counts:
        answers = [_answer(config, bench, collection, truth, which, count, seed, fits, fit)
                   for which in range(NUM_REPLICAS)]
        figures[count] = {
            name: compare(torch.stack([answer[name] for answer in answers]), truth.gradient,
                          num_live)
            for name in bench.estimators}
        add_gains(figures[count])
    return {'truth': describe_truth(truth), 'figures': figures}


def _answer(config, bench, collection: Collection, truth: Truth, which, count, seed, folder, fit):
    """Return each estimator's gradients (n, action_dim), fitted on one replica."""
    paths = {name: folder / f'{name}-{"AB"[which]}-{count}.pt' for name in bench.estimators}
    missing = tuple(name for name, path in paths.items() if not path.exists())
    if missing:
        _note(f'{folder.parent}, seed {seed}: fitting {", ".join(missing)} on '
              f'{count} transitions of replica {"AB"[which]}')
        data = collection.replica(which, count)
        fit_seed = int(np.random.SeedSequence([seed, which, count]).generate_state(1)[0])
        goal = make_world(config.world).achieved_goal
        fitted = fit(config.learner, missing, data, *collection.networks(config), fit_seed, goal)
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            gradient = fitted[name](truth.obs, truth.action).detach()
            if gradient.shape != truth.gradient.shape or not gradient.isfinite().all():
                raise ValueError(f'the gradient of {name} must be {tuple(truth.gradient.shape)} '
                                 f'finite numbers, got {tuple(gradient.shape)}, '
                                 f'{int(gradient.isfinite().sum())} of them finite')
            save_checkpoint(paths[name], {'gradient': gradient}, alone=False)
    return {name: load_checkpoint(path)['gradient'] for name, path in paths.items()}


def _collector_key(collector):
    learner = {name: getattr(collector.learner, name) for name in CRITIC_FIELDS}
    return [dump(collector.world), dump(learner), dump(collector.trainer), CHECKPOINT_VERSION,
            versions(), source(ROOM / 'sim', ROOM / 'learn', *(
                ROOM / 'bench' / name for name in ('collect.py', 'truth.py')))]


def _note(text):
    print(text, file=sys.stderr, flush=True)
