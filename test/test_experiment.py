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

"""Experiments: every mistake in a YAML, an override or a folder gets one line that names it."""

import numpy as np
import pytest
from small_training import tiny_config, train
import yaml

from dpg_robot.contract.spec import TrainingRecord
from dpg_robot.contract.strict import dump, SpecError
from dpg_robot.experiment import (
    CONFIG_FILE,
    export_run,
    load_config,
    load_training,
    open_trainer,
    versions,
    world_of,
)
from dpg_robot.sim.tasks import TASKS
from dpg_robot.sim.world import make_world, WorldConfig
from dpg_robot.strict_yaml import load_yaml


def test_packaged_config():
    config = load_config('fetch_reach')
    assert config.world.task == 'fetch_reach'
    assert config.world.noise.actuator == 0.3
    assert config.learner.estimator == 'doubly_robust'


def test_round_trip(tmp_path):
    config = tiny_config('learner.sigma=0.1234567890123', 'learner.target_entropy=null',
                         'world.noise.observation={goal_position: 0.01}')
    path = tmp_path / 'copy.yaml'
    path.write_text(yaml.safe_dump(dump(config)))
    assert load_config(path) == config


@pytest.mark.parametrize('text, message', [
    ('world: {task: fetch_fly}', f'world.task must be one of {", ".join(TASKS)}; got fetch_fly'),
    ('learner: {}', 'world is required and missing'),
    ('world: {}', 'world.task is required and missing'),
    ('world: {task: fetch_reach, noice: 1}',
     'world.noice is not a known key; known keys: task, reward, noise'),
    ('world: {task: fetch_reach}\nlearning: {}',
     'learning is not a known key; known keys: world, learner, trainer'),
    ('world: {task: fetch_reach}\nlearner: {sigma: wide}',
     "learner.sigma must be a number, got 'wide'"),
    ('world: {task: fetch_reach}\nlearner: {sigma: 0}',
     'learner.sigma must be greater than 0, got 0.0'),
    ('world: {task: fetch_reach}\nlearner: {sigma: .nan}',
     'learner.sigma must be finite, got nan'),
    ('world: {task: fetch_reach}\nlearner: {gamma: 1.0}',
     'learner.gamma must be at most 0.9999, got 1.0'),
    ('world: {task: fetch_reach}\nlearner: {estimator: magic}',
     'learner.estimator must be one of denoising, doubly_robust, critic, disturbance_critic, '
     'model, discriminative, reinforce; got magic'),
    ('world: {task: fetch_reach}\nlearner: {hidden: 64}', 'learner.hidden must be a list, got 64'),
    ('world: {task: fetch_reach}\nlearner: {hidden: [64, 0]}',
     'learner.hidden[1] must be at least 1, got 0'),
    ('world: {task: fetch_reach}\nlearner: {hidden: [6.5]}',
     'learner.hidden[0] must be an integer, got 6.5'),
    ('world: {task: fetch_reach}\nlearner:', 'learner must be a mapping, got None'),
    ('world: {task: fetch_reach}\ntrainer: {env_steps: yes}',
     'trainer.env_steps must be an integer, got True'),
    ('world: {task: fetch_reach}\ntrainer: {seed: -1}', 'trainer.seed must be at least 0, got -1'),
    ('world: {task: fetch_reach}\ntrainer: {workers: 5}',
     'trainer.workers must be at most num_worlds (4), got 5'),
    ('world: {task: fetch_reach, noise: {actuator: -0.1}}',
     'world.noise.actuator must be at least 0, got -0.1'),
    ('world: {task: fetch_reach, noise: {observation: {goal_position: -1}}}',
     'world.noise.observation.goal_position must be at least 0, got -1.0'),
    ('', 'config file PATH must be a mapping, got None'),
    ('- 1', 'config file PATH must be a mapping, got [1]'),
    ('world: [', 'config file PATH must be YAML: while parsing'),
    ('world:\n  task: reacher\n  noise: {actuator: 0.3}\n  noise: {}\n',
     'config file PATH must be YAML: the key noise is there twice'),
    ('world:\n  task: {{ task }}\n',
     'config file PATH must be YAML: a key must be a scalar, got '),
])
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_config(path)
    assert str(caught.value).startswith(message.replace('PATH', str(path)))
    assert '\n' not in str(caught.value)


def test_yaml_may_share_a_part(tmp_path):
    path = tmp_path / 'good.yaml'
    path.write_text('world:\n  task: reacher\n  noise: {<<: &all {actuator: 0.3, actuator_bias: '
                    '0.1}, actuator: 0.2}\n')
    noise = load_config(path).world.noise
    assert (noise.actuator, noise.actuator_bias) == (0.2, 0.1)
    text = 'base: &base {x: 1}\ndeep: {a: &a {<<: *base, x: 2}}\nc: {<<: *a, x: 3}\n'
    assert load_yaml(text, 'this') == {'base': {'x': 1}, 'deep': {'a': {'x': 2}}, 'c': {'x': 3}}


def test_config_that_is_not_text(tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(SpecError, match='^config file .*bad.yaml must be YAML: '):
        load_config(path)


@pytest.mark.parametrize('name, message', [
    ('nowhere.yaml', '^config file nowhere.yaml cannot be read: No such file or directory$'),
    ('fetch_fly',
     '^fetch_fly is not a task; tasks: .*fetch_reach, .*; or give the path of a .yaml')])
def test_no_such_config(name, message):
    with pytest.raises(SpecError, match=message):
        load_config(name)


@pytest.mark.parametrize('override, message', [
    ('learner.sigma', "an override must look like learner.sigma=0.2, got 'learner.sigma'"),
    ('learner.sigmo=1', 'learner.sigmo is not a known key; known keys: estimator, '),
    ('learner.sigma=-1', 'learner.sigma must be greater than 0, got -1.0'),
    ('learner.sigma=', 'learner.sigma must be a number, got None'),
    ('learner.sigma=[1', "the value '[1' of the override learner.sigma must be YAML: while "),
    ('learner.sigma.wide=1', 'an override must be of a setting that is there, and sigma is 0.2, '
     "got 'learner.sigma.wide=1'"),
    ('learner={sigma: 0.1}', 'an override must be of one setting of learner, which would lose '
     'its estimator, gamma, '),
    ('world.noise={actuator_bias: 0.1}', 'an override must be of one setting of world.noise, '
     'which would lose its actuator, command_latency_s, observation, got '
     "'world.noise={actuator_bias: 0.1}'"),
    ('=1', "an override must look like learner.sigma=0.2, got '=1'"),
    ('learner.=1', "an override must look like learner.sigma=0.2, got 'learner.=1'"),
    ('teacher.sigma=1', 'teacher is not a known key; known keys: world, learner, trainer')])
def test_bad_override(override, message):
    with pytest.raises(SpecError) as caught:
        load_config('fetch_reach', [override])
    assert str(caught.value).startswith(message)
    assert '\n' not in str(caught.value)


def test_overrides_in_order():
    config = load_config('fetch_reach', [
        'learner.hidden=[8, 4]', 'learner.sigma=0.1', 'learner.sigma=0.3',
        'world.noise.command_latency_s=0.02', 'learner.target_entropy=null',
        'world.noise={actuator: 0.25, command_latency_s: 0.02, observation: {}}'])
    assert config.learner.hidden == (8, 4)
    assert config.learner.sigma == 0.3
    assert config.world.noise.actuator == 0.25
    assert config.world.noise.command_latency_s == 0.02
    assert config.learner.target_entropy is None


@pytest.mark.parametrize('name, override, active', [
    ('half_cheetah_gpu', 'learner.sigma=0.9', 'on_policy'),
    ('half_cheetah_gpu', 'learner={sigma: 0.9}', 'on_policy'),
    ('fetch_reach', 'on_policy.horizon=9', 'learner')])
def test_an_override_that_would_do_nothing_is_refused(name, override, active):
    with pytest.raises(SpecError, match=f'^an override must be of {active}, whose settings the '
                       f'algorithm that trains has, got {override}$'):
        load_training(name, [override])


@pytest.mark.parametrize('key', ['warmup_steps', 'updates_per_step', 'replay_capacity'])
def test_an_override_of_a_replay_is_refused_where_there_is_none(key):
    with pytest.raises(SpecError, match=f'^an override of trainer must not be of .*{key}.* for '
                       f'the algorithm on_policy, which has none, got trainer.{key}=99$'):
        load_training('half_cheetah_gpu', [f'trainer.{key}=99'])
    assert getattr(load_training('half_cheetah', [f'trainer.{key}=99']).trainer, key) == 99


def test_noise_on_an_unknown_term():
    config = tiny_config('world.noise.observation={elbow: 0.1}')
    with pytest.raises(SpecError, match='^noise.observation.elbow is not an observation term of '
                       'fetch_reach; its terms: end_effector_position, '):
        make_world(config.world)


def test_a_refused_start_leaves_no_folder(tmp_path):
    config = tiny_config('world.noise.observation={elbow: 0.1}')
    with pytest.raises(SpecError):
        open_trainer(config, tmp_path / 'run', resume=True)
    assert not (tmp_path / 'run').exists()


def test_which_run_is_where(tmp_path):
    config = tiny_config('trainer.env_steps=4')
    run_dir = tmp_path / 'run'
    with pytest.raises(SpecError, match='/run holds no training to resume: there is no '
                       'config.yaml$'):
        open_trainer(None, run_dir, resume=True)
    assert not run_dir.exists()
    with pytest.raises(SpecError, match='/run holds no checkpoint to export: there is no '
                       'checkpoint.pt$'):
        export_run(run_dir, run_dir / 'model.onnx')
    train(config, run_dir, resume=False)
    assert load_config(run_dir / CONFIG_FILE) == config
    with pytest.raises(SpecError, match='/run already holds a training; resume it, or choose '
                       'another folder$'):
        open_trainer(config, run_dir, resume=False)
    assert open_trainer(None, run_dir, resume=True).env_steps == 4


def test_a_new_training_needs_a_config(tmp_path):
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(dump(tiny_config())))
    with pytest.raises(SpecError, match='^config of a new training in .* must be given, got None'):
        open_trainer(None, tmp_path, resume=False)
    trainer = open_trainer(None, tmp_path, resume=True)  # killed before its first checkpoint
    assert trainer.env_steps == 0 and trainer.identity == dump(tiny_config())


def test_world_of_a_policy():
    spec = make_world(tiny_config().world).policy_spec
    with pytest.raises(SpecError, match='^world.task is required and missing$'):
        world_of(spec)
    world = WorldConfig('fetch_reach')
    spec = spec.with_training(TrainingRecord('critic', 1, 2, dump(world)))
    assert world_of(spec) == world
    assert world_of(spec, ['noise.actuator=0.5']).noise.actuator == 0.5
    assert world_of(spec) == world


def test_versions_are_those_that_run():
    assert versions()['numpy'] == np.__version__
    assert all(isinstance(version, str) and version for version in versions().values())
