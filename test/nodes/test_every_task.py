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

"""Every task that comes with the package goes all the way: trained, exported, over topics."""

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
import pytest
from ros_harness import values
from small_training import TINY, train
import yaml

from dpg_robot.contract.fields import FieldReader
from dpg_robot.contract.messages import group_by_topic, message_class
from dpg_robot.experiment import export_trainer, load_config
from dpg_robot.resources import share_path
from dpg_robot.sim.tasks import TASKS


def find_configs():
    """Return a packaged configuration for each task, the one of its name if there is one."""
    configs = {}
    for path in sorted(share_path('config').glob('*.yaml')):
        task = yaml.safe_load(path.read_text()).get('world', {}).get('task')
        if task and (task not in configs or path.stem == task):
            configs[task] = path
    return configs


CONFIGS = find_configs()
SMOKE = [*TINY, 'learner.batch_size=16', 'trainer.num_worlds=1', 'trainer.warmup_steps=20',
         'trainer.env_steps=40']
STEPS = 10


def test_every_task_has_a_configuration():
    assert CONFIGS.keys() == TASKS.keys()
    for name, path in CONFIGS.items():
        assert load_config(path).world.task == name
        assert path.stem == name or TASKS[name].needs_robot


@pytest.mark.parametrize('name', CONFIGS)
def test_a_policy_of_the_task_drives_its_robot_over_topics(name, ros, tmp_path, monkeypatch):
    names = ['-r', f'__ns:=/{name}']
    robot = ros.start('sim_node', names, config=CONFIGS[name], diagnostics_period_s=0.2)
    monkeypatch.setattr('dpg_robot.experiment.EVAL_ENVS', 1)
    config = load_config(CONFIGS[name], SMOKE)
    trainer = train(config, tmp_path)
    spec, parity = export_trainer(trainer, config, tmp_path / 'model.onnx', episodes=0)
    assert parity <= 1e-5

    groups, commands = group_by_topic(spec.action), {}
    for topic, group in groups.items():
        commands[topic] = ros.listen(message_class(group.type), f'/{name}/{topic}')
    brain = ros.start('policy_node', names, model=tmp_path / 'model.onnx',
                      diagnostics_period_s=0.2)
    # On a busy machine a state may come too late, and the safe command goes out for a while.
    status = ros.status(f'{name}/sim_node: world', is_driven, timeout=30.0)
    assert values(status)['bad_commands'] == '0'
    ros.status(f'{name}/policy_node: control', lambda s: s.level != DiagnosticStatus.ERROR)
    for topic, group in groups.items():
        heard = commands[topic]
        ros.wait(lambda: num_of_policy(spec, group, heard) >= STEPS, what='a policy on ' + topic)
    assert ros.stop(brain) == 0 and ros.stop(robot) == 0


def is_driven(status):
    told = values(status)
    return told['state'] == 'driven' and int(told['steps']) >= STEPS


def num_of_policy(spec, group, heard):
    """Return how many commands of a topic are not the safe one; each must be a valid one."""
    lower, upper, safe = (
        np.concatenate([np.array(getattr(term, key), float) for term in spec.action])[group.places]
        for key in ('lower', 'upper', 'safe'))
    reader, commands = FieldReader(group.fields), np.full((len(heard), len(lower)), np.nan)
    for (_, message), command in zip(list(heard), commands):
        reader.read(message, command)
    assert np.isfinite(commands).all()
    assert ((lower - 1e-9 <= commands) & (commands <= upper + 1e-9)).all()
    return (commands != safe).any(1).sum()
