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

"""An experiment: a world, a learner and a trainer from one YAML, and what is done with them."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
import os
from pathlib import Path
import platform
import subprocess
from typing import Any

import numpy as np

from dpg_robot import __version__
from dpg_robot.contract.describe import describe, is_description
from dpg_robot.contract.model_file import read_sealed
from dpg_robot.contract.spec import PolicySpec, TrainingRecord
from dpg_robot.contract.strict import dump, load, SpecError
from dpg_robot.learn.checkpoint import write_atomic
from dpg_robot.learn.device import find_device
from dpg_robot.learn.evaluate import evaluate, Evaluation
from dpg_robot.learn.hindsight import Goals, goals_of
from dpg_robot.learn.learner import LearnerConfig
from dpg_robot.learn.on_policy_learner import OnPolicyConfig
from dpg_robot.learn.trainer import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    refuse_other,
    Trainer,
    TrainerConfig,
)
from dpg_robot.resources import task_file
from dpg_robot.sim.robot_config import find_model, hash_of, locate
from dpg_robot.sim.world import make_device_vector, make_vector, make_world, WorldConfig
from dpg_robot.strict_yaml import load_yaml, read_task_file

EVAL_ENVS = 10
PARITY_OBSERVATIONS = 1_000
ESTIMATOR = 'estimator='
# Of the trainer's settings, what a rollout has no use for.
OFF_POLICY_ONLY = ('warmup_steps', 'updates_per_step', 'replay_capacity')


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides a training.

    :param world: the task, and what is noisy about it.
    :param learner: settings of the algorithm ``off_policy``.
    :param trainer: how long and how to train, and by which algorithm.
    :param on_policy: settings of the algorithm ``on_policy``, which takes none of ``learner``.
    """

    world: WorldConfig
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)

    @property
    def active(self) -> LearnerConfig | OnPolicyConfig:
        """Return the settings of the learner that trains."""
        return self.on_policy if self.trainer.algorithm == 'on_policy' else self.learner

    def check(self, name: str) -> None:
        """Check the rules that span sections.

        :raises SpecError: naming the key, the rule and the value.
        """
        if self.trainer.hindsight and self.learner.route == 'inverted':
            raise SpecError('trainer.hindsight must be 0 for the route inverted, since no '
                            'behaviour acted for such a goal, got '
                            f'{self.trainer.hindsight}')


def load_config(path: str | Path, overrides: list[str] = ()) -> ExperimentConfig:
    """Read an experiment's YAML.

    :param path: a file, or the name of a packaged one such as ``fetch_reach``.
    :param overrides: changes such as ``learner.sigma=0.3``, values in YAML; ``estimator=critic``
        is the estimator of the algorithm that trains.
    :raises SpecError: naming the file or key, the rule and the value.
    """
    path = task_file(path)
    data = read_task_file(path)
    for override in overrides:
        if not override.startswith(ESTIMATOR):
            _apply(data, override)
    if any(override.startswith('world.robot.model=') for override in overrides):
        locate(data['world'], Path.cwd())  # what is typed is meant from here
    for override in overrides:
        if override.startswith(ESTIMATOR):
            _apply(data, f'{_active_section(data)}.{override}')
    locate(data.get('world'), path.parent)
    return load(ExperimentConfig, data)


def load_training(path: str | Path, overrides: list[str] = ()) -> ExperimentConfig:
    """Read the YAML of one training; see :func:`load_config`.

    :raises SpecError: also if an override would do nothing, since it is of the algorithm that
        does not train.
    """
    config = load_config(path, overrides)
    active = _active_section(dump(config))
    idle = {'learner': 'on_policy', 'on_policy': 'learner'}[active]
    for override in overrides:
        section, _, setting = override.partition('=')[0].partition('.')
        if section == idle:
            raise SpecError(f'an override must be of {active}, whose settings the algorithm that '
                            f'trains has, got {override}')
        if (active, section) == ('on_policy', 'trainer') and setting in OFF_POLICY_ONLY:
            raise SpecError(f'an override of trainer must not be of {", ".join(OFF_POLICY_ONLY)} '
                            f'for the algorithm on_policy, which has none, got {override}')
    return config


def _active_section(data):
    trainer = data.get('trainer')
    chosen = isinstance(trainer, dict) and trainer.get('algorithm') == 'on_policy'
    return 'on_policy' if chosen else 'learner'


def _apply(data, override):
    key, found, value = override.partition('=')
    *parents, last = key.split('.')
    if not found or not all((*parents, last)):
        raise SpecError(f'an override must look like learner.sigma=0.2, got {override!r}')
    section, content = data, load_yaml(value, f'the value {value!r} of the override {key}')
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise SpecError(f'an override must be of a setting that is there, and {parent} is '
                            f'{section!r}, got {override!r}')
    present = section.get(last)
    if isinstance(content, dict) and isinstance(present, dict) \
            and not present.keys() <= content.keys():
        lost = ', '.join(name for name in present if name not in content)
        raise SpecError(f'an override must be of one setting of {key}, which would lose its '
                        f'{lost}, got {override!r}')
    section[last] = content


def open_trainer(config: ExperimentConfig | None, run_dir: Path, resume: bool) -> Trainer:
    """Start a training in ``run_dir``, or resume the one that is there.

    :param config: None to take what the run was started with; a resumed run may only differ
        from that in ``MAY_DIFFER`` and ``MAY_BE_EMPTY`` (:mod:`dpg_robot.learn.trainer`).
    :param resume: go on from the checkpoint that is there, or begin where there is none.
    :raises SpecError: if a checkpoint is there and ``resume`` is false, if there is no
        ``config`` and none to resume with, if the run there is another one, if the task has no
        goals for ``trainer.hindsight``, or if the device is missing, too small, or has no version
        of the task.
    """
    run_dir = Path(run_dir)
    path, started = run_dir / CONFIG_FILE, (run_dir / CHECKPOINT_FILE).exists()
    if started and not resume:
        raise SpecError(f'{run_dir} already holds a training; resume it, or choose another folder')
    if config is None and not resume:
        raise SpecError(f'config of a new training in {run_dir} must be given, got None')
    if config is None and not path.exists():
        raise SpecError(f'{run_dir} holds no training to resume: there is no {CONFIG_FILE}')
    if path.exists() and resume:
        old = load_config(path)
        config = config or old
        refuse_other(dump(old), dump(config), run_dir)
    goals = hindsight_goals(config)
    return Trainer(config.trainer, config.active, make_training_worlds(config),
                   make_vector(config.world, EVAL_ENVS), run_dir, dump(config), goals, _complete,
                   dump(_with_hash(config)))


def _with_hash(config):
    """Return a configuration that holds from now on to the model file that it has taken."""
    robot = config.world.robot
    if robot is None or robot.model_hash:
        return config
    robot = replace(robot, model_hash=hash_of(find_model(robot.model)))
    return replace(config, world=replace(config.world, robot=robot))


def _complete(identity):
    """Return a configuration of an earlier version with the keys that were added since."""
    return dump(load(ExperimentConfig, identity))


def make_training_worlds(config: ExperimentConfig):
    """Return the worlds that a training acts in, on its device.

    :raises SpecError: as :func:`open_trainer`.
    """
    trainer, device = config.trainer, find_device(config.trainer.device)
    if trainer.device == 'cpu':
        return make_vector(config.world, trainer.num_worlds, trainer.workers)
    return make_device_vector(config.world, trainer.num_worlds, str(device))


def hindsight_goals(config: ExperimentConfig) -> Goals | None:
    """Return what the trainer must know of the task's goals, or None without hindsight.

    :raises SpecError: if the task has none.
    """
    return goals_of(make_world(config.world)) if config.trainer.hindsight else None


def export_trainer(trainer: Trainer, config: ExperimentConfig, path: Path,
                   episodes: int = 100) -> tuple[PolicySpec, float]:
    """Evaluate a trainer's policy and write it as one ONNX file, with a card beside it.

    :param episodes: how many to evaluate; the result is stored in the file.
    :return: the spec in the file, and the parity found (fraction of the action range).
    :raises SpecError: if the file is no .onnx, or a file that is no card lies where its card goes.
    """
    from dpg_robot.export import export_policy  # onnx is not needed for training
    path, card_path = Path(path), check_policy_path(path)
    evaluation = trainer.evaluate(episodes) if episodes else None
    world = make_world(config.world)
    spec = world.policy_spec.with_training(TrainingRecord(
        estimator=config.active.estimator, env_steps=trainer.env_steps,
        seed=config.trainer.seed, world=trainer.identity['world'],
        evaluation=asdict(evaluation) if evaluation else {}, versions=versions()))
    observations = trainer.algorithm.recorded(PARITY_OBSERVATIONS).numpy()
    if not len(observations):
        raise SpecError(f'nothing to export in {trainer.run_dir}: no environment step was taken')
    policy = copy.deepcopy(trainer.learner.policy).cpu()
    parity = export_policy(policy, spec, observations, path)
    card = describe(spec, read_sealed(path)[1])
    write_atomic(card_path, lambda file: file.write(card.encode()), alone=False)
    return spec, parity


def check_policy_path(path: Path) -> Path:
    """Check where a policy shall be written, and return where its card goes.

    :raises SpecError: if the file is no .onnx, or a file that is no card lies where its card goes.
    """
    path = Path(path)
    if path.suffix != '.onnx' or path.is_dir():
        raise SpecError(f'a policy must be written to a file that ends in .onnx, got {path}')
    card_path = path.with_suffix('.md')
    if card_path.exists() and not is_description(card_path.read_text(errors='replace')):
        raise SpecError(f'the card of a policy must not replace another file: {card_path} is '
                        'none; move it, or name the policy differently')
    return card_path


def export_run(run_dir: Path, path: Path, episodes: int = 100,
               overrides: list[str] = ()) -> tuple[PolicySpec, float]:
    """Export the newest checkpoint of a run, which may go on; see :func:`export_trainer`.

    :param overrides: changes of what may differ in a resumed run, as where the robot's model is
        now: ``world.robot.model=PATH``.
    :raises SpecError: if the folder holds no checkpoint, or an override is wrong.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CHECKPOINT_FILE).exists():
        raise SpecError(f'{run_dir} holds no checkpoint to export: there is no {CHECKPOINT_FILE}')
    config = load_config(run_dir / CONFIG_FILE, overrides)
    # Its worlds are not needed, nor the device that they were on.
    trainer = Trainer(replace(config.trainer, device='cpu'), config.active, None,
                      make_vector(config.world, EVAL_ENVS), run_dir, dump(config),
                      hindsight_goals(config), _complete, dump(_with_hash(config)))
    try:
        return export_trainer(trainer, config, path, episodes)
    finally:
        trainer.close()


def world_of(spec: PolicySpec, overrides: list[str] = ()) -> WorldConfig:
    """Return the world that a policy was trained in.

    :param overrides: changes such as ``noise.actuator=0.2``.
    :raises SpecError: if the spec does not say, or an override is wrong.
    """
    data = copy.deepcopy(spec.training.world)
    for override in overrides:
        _apply(data, override.removeprefix('world.'))
    return load(WorldConfig, data, 'world')


def check_world(spec: PolicySpec, world: WorldConfig) -> None:
    """Check that a world keeps a policy's contract, whatever else differs.

    :raises SpecError: naming what does not.
    """
    # Training needs no onnxruntime.
    from dpg_robot.runtime.model_loader import check_same_contract
    there = make_world(world).policy_spec
    try:
        check_same_contract(spec, PolicySpec.from_json(there.to_json()), 'the policy')
    except SpecError as error:
        raise SpecError(f'the world must keep the contract of the policy: {error}') from error


def evaluate_model(policy, world: WorldConfig, episodes: int, seed: int = 1_000_000) -> Evaluation:
    """Evaluate an exported policy in process, deterministic (eps = 0).

    :param policy: a :class:`dpg_robot.runtime.onnx_policy.OnnxPolicy`.
    :raises SpecError: if the world gives other observations, or means other commands.
    """
    check_world(policy.spec, world)
    envs = make_vector(world, EVAL_ENVS)
    try:
        return evaluate(lambda obs: policy.spec.normalised(policy(obs.astype(np.float32))),
                        envs, episodes, seed)
    finally:
        envs.close()


def machine() -> str:
    """Return what a time depends on, and to the last bit a training: the processor."""
    return f'{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}'


def processor() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.machine()


def versions() -> dict[str, Any]:
    """Return the versions that a result depends on."""
    names = ['torch', 'mujoco', 'gymnasium', 'gymnasium-robotics', 'onnxruntime', 'numpy']
    names += [name for name in ('mujoco-warp', 'warp-lang')  # only worlds on a device need them
              if any(metadata.distributions(name=name))]
    return {'dpg_robot': __version__, 'python': platform.python_version(),
            **{name: metadata.version(name) for name in names}}


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, None where there is none."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments):
        return subprocess.run(['git', '-C', root, *arguments],
                              capture_output=True, text=True).stdout.strip()
    with contextlib.suppress(OSError):  # there may be no git
        if (root / '.git').exists() and (found := git('rev-parse', '--short=12', 'HEAD')):
            changed = git('status', '--porcelain', '--untracked-files=no', '--', '.',
                          ':!benchmarks/results')
            return found + '-dirty' * bool(changed)
    return None
