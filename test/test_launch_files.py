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

"""Launch and parameter files, checked against the package without ROS's launch."""

import importlib
from importlib.metadata import distribution
from pathlib import Path
import re
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*'))
PARAMETER_FILES = [path for path in sorted((ROOT / 'config').glob('*.yaml'))
                   if 'ros__parameters' in path.read_text()]
SHARE = '$(find-pkg-share dpg_robot)/'
VARIABLE = re.compile(r'\$\(var (\w+)\)')
SUBSTITUTION = re.compile(r'\$\((\S+)')
TYPES = {'str': str, 'int': int, 'float': float, 'bool': bool}


def parse(path):
    return ElementTree.parse(path).getroot()


def executables():
    """Return the module of each console script."""
    return {script.name: script.value.partition(':')[0]
            for script in distribution('dpg_robot').entry_points}


def parameters_of(executable):
    """Return the parameter table of a node by name."""
    return {entry.name: entry
            for entry in importlib.import_module(executables()[executable]).PARAMETERS}


def named(path):
    return path.name


def test_there_are_launch_files_for_each_job():
    assert {'sim_launch.xml', 'deploy_launch.xml', 'train_launch.xml'} <= {
        path.name for path in LAUNCH_FILES}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_arguments_are_described_and_used(path):
    root = parse(path)
    assert root.tag == 'launch'
    declared = [arg.get('name') for arg in root.findall('arg')]
    assert len(declared) == len(set(declared))
    for arg in root.findall('arg'):
        assert len(arg.get('description', '')) > 10, arg.get('name')
        assert arg.get('default') is not None, arg.get('name')
    computed = {let.get('name') for let in root.findall('let')}
    assert set(VARIABLE.findall(path.read_text())) - computed == set(declared)


def test_a_wrong_argument_is_found_before_anything_runs():
    """What launch reads late, after the simulated robot has started, has choices."""
    root = parse(ROOT / 'launch/deploy_launch.xml')
    choices = {arg.get('name'): [choice.get('value') for choice in arg.findall('choice')]
               for arg in root.findall('arg')}
    for param in root.iter('param'):
        if param.get('type') != 'str':
            name, = VARIABLE.findall(param.get('value'))
            assert name == 'rate_factor' or {'true', 'false'} <= set(choices[name])


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_nodes_get_their_arguments_by_ros_args(path):
    """Of a parameter file that is not there, launch itself only warns; a node refuses it."""
    for node in parse(path).iter('node'):
        assert '--log-level $(var log_level)' in node.get('ros_args')
        assert all(param.get('from') is None for param in node.findall('param'))
    if 'params_file' in path.read_text():
        assert '--params-file $(var params_file)' in path.read_text()


def test_a_real_robot_runs_in_real_time():
    root = parse(ROOT / 'launch/deploy_launch.xml')
    first, second = (let for let in root.findall('let') if let.get('name') == 'rate_factor')
    assert (first.get('value'), first.get('if')) == ('1.0', None)
    assert (second.get('value'), second.get('if')) == ('$(var speed)', '$(var use_sim)')
    param, = (p for p in root.iter('param') if p.get('name') == 'rate_factor')
    assert param.get('value') == '$(var rate_factor)'


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_it_is_nothing_but_wiring(path):
    assert {element.tag for element in parse(path).iter()} <= {
        'launch', 'arg', 'choice', 'let', 'node', 'param', 'remap', 'include', 'group',
        'push_ros_namespace'}
    assert set(SUBSTITUTION.findall(path.read_text())) <= {'var', 'find-pkg-share'}


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_executables_and_parameters_exist(path):
    nodes = list(parse(path).iter('node'))
    assert nodes
    for node in nodes:
        assert node.get('pkg') == 'dpg_robot'
        assert node.get('exec') in executables()
        known = parameters_of(node.get('exec'))
        for param in node.findall('param'):
            assert param.get('name') in known
            kind = type(known[param.get('name')].default)
            # launch has no name for the type of a list; it reads it as YAML.
            assert TYPES.get(param.get('type'), list) is kind


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_default_values_are_possible(path):
    """What a launch argument sets by default, its parameter takes."""
    root = parse(path)
    defaults = {arg.get('name'): arg.get('default') for arg in root.findall('arg')}
    # The last value that a condition allows is not known here; the first is always given.
    for let in reversed(root.findall('let')):
        defaults[let.get('name')] = let.get('value')
    for node in root.iter('node'):
        known = parameters_of(node.get('exec'))
        for param in node.findall('param'):
            variable = VARIABLE.fullmatch(param.get('value') or '')
            if variable is None:
                continue
            entry, text = known[param.get('name')], defaults[variable.group(1)]
            if isinstance(entry.default, bool):
                assert text in ('true', 'false')
            elif entry.minimum is not None:
                assert entry.minimum <= type(entry.default)(text) <= entry.maximum
            elif entry.choices:
                assert text in entry.choices


@pytest.mark.parametrize('path', LAUNCH_FILES, ids=named)
def test_files_exist_and_includes_fit(path):
    root = parse(path)
    defaults = {arg.get('name'): arg.get('default') for arg in root.findall('arg')}
    for relative in re.findall(re.escape(SHARE) + r'([^"]+)', path.read_text()):
        relative = VARIABLE.sub(lambda match: defaults[match.group(1)], relative)
        assert (ROOT / relative).is_file(), relative
    for include in root.iter('include'):
        file = include.get('file')
        assert file.startswith(SHARE)
        declared = {arg.get('name') for arg in parse(ROOT / file[len(SHARE):]).findall('arg')}
        assert {arg.get('name') for arg in include.findall('arg')} <= declared


@pytest.mark.parametrize('task', ['fetch_reach', 'six_axis_reach'])
def test_one_word_deploys_a_packaged_task(task):
    defaults = {arg.get('name'): arg.get('default')
                for arg in parse(ROOT / 'launch/deploy_launch.xml').findall('arg')}
    for name, file in (('model', f'models/{task}.onnx'), ('sim_config', f'config/{task}.yaml')):
        assert defaults[name].replace(SHARE, '').replace('$(var config)', task) == file
        assert (ROOT / file).is_file()


def test_there_are_parameter_files():
    assert 'fetch_robot.yaml' in {path.name for path in PARAMETER_FILES}


@pytest.mark.parametrize('path', PARAMETER_FILES, ids=named)
def test_parameter_files_name_nodes_and_parameters_that_exist(path):
    for namespace, nodes in yaml.safe_load(path.read_text()).items():
        assert namespace.startswith('/')
        for node, section in nodes.items():
            known = parameters_of(node)
            for name, value in section['ros__parameters'].items():
                entry = known[name]
                assert type(value) is type(entry.default), name
                if entry.minimum is not None:
                    assert entry.minimum <= value <= entry.maximum, name
                assert not entry.choices or value in entry.choices, name
