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

import copy
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
import platform
from typing import Any

import numpy as np
import yaml

from dpg_robot import __version__
from dpg_robot.contract.describe import describe
from dpg_robot.contract.model_file import read_sealed
from dpg_robot.contract.spec import PolicySpec, TrainingRecord
from dpg_robot.contract.strict import dump, load, SpecError
from dpg_robot.learn.checkpoint import write_atomic
from dpg_robot.learn.evaluate import evaluate, Evaluation
from dpg_robot.learn.hindsight import Goals, goals_of
from dpg_robot.learn.learner import LearnerConfig
from dpg_robot.learn.trainer import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    refuse_other,
    Trainer,
    TrainerConfig,
)
from dpg_robot.resources import task_file
from dpg_robot.sim.robot_config import locate
from dpg_robot.sim.world import make_vector, make_world, WorldConfig

EVAL_ENVS = 10
PARITY_OBSERVATIONS = 1_000


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides a training."""

    world: WorldConfig
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

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
    :param overrides: changes such as ``learner.estimator=denoising``, values in YAML.
    :raises SpecError: naming the file or key, the rule and the value.
    """
    path = task_file(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(f'config file {path} cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f'config file {path} must be YAML: {_one_line(error)}') from error
    if not isinstance(data, dict):
        raise SpecError(f'config file {path} must be a mapping, got {data!r}')
    for override in overrides:
        _apply(data, override)
    locate(data.get('world'), path.parent)
    return load(ExperimentConfig, data)


def _apply(data, override):
    key, found, value = override.partition('=')
    if not found:
        raise SpecError(f'an override must look like learner.sigma=0.2, got {override!r}')
    *parents, last = key.split('.')
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise SpecError(f'override {key}: {parent} is not a mapping, got {data!r}')
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f'override {key}: its value must be YAML, got {value!r}: '
                        f'{_one_line(error)}') from error


def _one_line(error):
    return ' '.join(str(error).split())


def open_trainer(config: ExperimentConfig | None, run_dir: Path, resume: bool) -> Trainer:
    """Start a training in ``run_dir``, or resume the one that is there.

    :param config: None to take what the run was started with; a resumed run may only differ
        from that in ``trainer.env_steps`` and ``trainer.workers``.
    :raises SpecError: if a run is there and ``resume`` is false, if there is none to resume, if
        it is another one, or if the task has no goals for ``trainer.hindsight``.
    """
    run_dir = Path(run_dir)
    path, started = run_dir / CONFIG_FILE, (run_dir / CHECKPOINT_FILE).exists()
    if started and not resume:
        raise SpecError(f'{run_dir} already holds a training; resume it, or choose another folder')
    if config is None and not path.exists():
        raise SpecError(f'{run_dir} holds no training to resume: there is no {CONFIG_FILE}')
    if path.exists() and resume:
        old = load_config(path)
        config = config or old
        refuse_other(dump(old), dump(config), run_dir)
    goals = hindsight_goals(config)
    envs = make_vector(config.world, config.trainer.num_envs, config.trainer.workers)
    return Trainer(config.trainer, config.learner, envs, make_vector(config.world, EVAL_ENVS),
                   run_dir, identity=dump(config), goals=goals)


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
    """
    from dpg_robot.export import export_policy  # onnx is not needed for training
    evaluation = trainer.evaluate(episodes) if episodes else None
    world = make_world(config.world)
    spec = world.policy_spec.with_training(TrainingRecord(
        estimator=config.learner.estimator, env_steps=trainer.env_steps,
        seed=config.trainer.seed, world=dump(config.world),
        evaluation=asdict(evaluation) if evaluation else {}, versions=versions()))
    recorded = trainer.replay.data.next_obs[:trainer.replay.size].numpy()
    if not len(recorded):
        raise SpecError(f'nothing to export in {trainer.run_dir}: no environment step was taken')
    observations = recorded[-PARITY_OBSERVATIONS:]
    path = Path(path)
    parity = export_policy(trainer.learner.policy, spec, observations, path)
    card = describe(spec, read_sealed(path)[1])
    write_atomic(path.with_suffix('.md'), lambda file: file.write(card.encode()))
    return spec, parity


def export_run(run_dir: Path, path: Path, episodes: int = 100) -> tuple[PolicySpec, float]:
    """Export the newest checkpoint of a run, which may go on; see :func:`export_trainer`.

    :raises SpecError: if the folder holds no checkpoint.
    """
    run_dir = Path(run_dir)
    if not (run_dir / CHECKPOINT_FILE).exists():
        raise SpecError(f'{run_dir} holds no checkpoint to export: there is no {CHECKPOINT_FILE}')
    config = load_config(run_dir / CONFIG_FILE)
    trainer = open_trainer(None, run_dir, resume=True)
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


def evaluate_model(policy, world: WorldConfig, episodes: int, seed: int = 1_000_000) -> Evaluation:
    """Evaluate an exported policy in process, deterministic (eps = 0).

    :param policy: a :class:`dpg_robot.runtime.onnx_policy.OnnxPolicy`.
    """
    envs = make_vector(world, EVAL_ENVS)
    try:
        return evaluate(lambda obs: policy.spec.normalised(policy(obs.astype(np.float32))),
                        envs, episodes, seed)
    finally:
        envs.close()


def versions() -> dict[str, Any]:
    """Return the versions that a result depends on."""
    names = ('torch', 'mujoco', 'gymnasium', 'gymnasium-robotics', 'onnxruntime', 'numpy')
    return {'dpg_robot': __version__, 'python': platform.python_version(),
            **{name: metadata.version(name) for name in names}}
