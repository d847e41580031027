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

"""What the files around the code say of the package, checked against each other and the code."""

import ast
from importlib.metadata import distribution
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

from ament_index_python import packages as ament_index
from catkin_pkg.package import parse_package
import pytest

import dpg_robot

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('dpg_robot', 'test', 'benchmarks', 'tools', 'launch')
SOURCES = [path for name in FOLDERS for path in sorted((ROOT / name).rglob('*.py'))]
LICENCE = (ROOT / 'setup.py').read_text().partition('"""')[0]
SCRIPTS = {
    script.name: script for script in distribution('dpg_robot').entry_points
    if script.group == 'console_scripts'}
# What a ROS distribution installs, and package.xml must therefore name.
ROS_MODULE = re.compile(r'rclpy|\w+_msgs|\w+_srvs|rcl_interfaces|ament_index_python|launch\w*')
REQUIREMENTS = sorted((ROOT / 'requirements').glob('*.txt'))
PIN = re.compile(r"([\w.-]+==[\w.]+( ; python_version (<|>=) '3\.\d+')?)|-r \w+\.txt")


def requirement_lines(path):
    """Return what a requirements file asks for."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


def test_which_copy_is_tested():
    """``make test`` sets a safe path and tests the installed package, plain pytest the source."""
    package = Path(dpg_robot.__file__).resolve().parent
    if getattr(sys.flags, 'safe_path', False):
        assert Path(ament_index.get_package_prefix('dpg_robot')).resolve() in package.parents
    else:
        assert package == ROOT / 'dpg_robot'


def test_package_xml_is_valid():
    warnings = []
    package = parse_package(ROOT / 'package.xml', warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings
    assert package.package_format == 3
    assert package.name == 'dpg_robot'
    assert package.licenses == ['Apache-2.0']
    assert package.get_build_type() == 'ament_python'


def test_one_version_everywhere():
    version = parse_package(ROOT / 'package.xml').version
    told = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True,
        check=True)
    assert told.stdout.split()[-1] == version
    assert dpg_robot.__version__ == version
    changes = re.findall(
        r'^(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)\n-+$', (ROOT / 'CHANGELOG.rst').read_text(), re.M)
    assert changes[0] == version


def test_package_xml_names_the_ros_packages_that_are_imported():
    declared = {d.name for d in parse_package(ROOT / 'package.xml').exec_depends}
    imported = set()
    for path in (ROOT / 'dpg_robot').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported.update(alias.name.partition('.')[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition('.')[0])
    assert {name for name in imported if ROS_MODULE.fullmatch(name)} <= declared


def test_package_xml_names_no_message_package_for_nothing():
    declared = {d.name for d in parse_package(ROOT / 'package.xml').exec_depends}
    code = '\n'.join(path.read_text() for path in (ROOT / 'dpg_robot').rglob('*.py'))
    messages = {name for name in declared if re.fullmatch(r'\w+_(msgs|srvs|interfaces)', name)}
    assert messages
    assert {name for name in messages if not re.search(rf'\b{name}\b', code)} == set()


@pytest.mark.parametrize('script', ['venv.sh', 'test.sh'])
def test_a_path_with_a_space_is_refused(tmp_path, script):
    tools = tmp_path / 'my robot' / 'tools'
    shutil.copytree(ROOT / 'tools', tools)
    result = subprocess.run([tools / script, '.venv'], capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.rstrip().endswith('move the folder to a path without spaces')


@pytest.mark.parametrize('folder', ['launch', 'config', 'models', 'robots/six_axis'])
def test_data_files_are_installed(folder):
    try:
        share = Path(ament_index.get_package_share_directory('dpg_robot'), folder)
    except (OSError, ament_index.PackageNotFoundError):
        pytest.skip('only an installed package has them: make test')
    wanted = {
        path.name for path in (ROOT / folder).glob('*')
        if path.is_file() and (folder == 'models' or path.suffix in ('.xml', '.yaml'))}
    assert {path.name for path in share.glob('*')} == wanted


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_licence_header(path):
    text = path.read_text()
    if text.startswith('#!'):
        text = text.partition('\n')[2]
    assert not text or text.startswith(LICENCE)


def test_console_scripts():
    assert set(SCRIPTS) == {'dpg-robot', 'policy_node', 'sim_node', 'trainer_node'}


@pytest.mark.parametrize('name', ['dpg-robot', 'policy_node', 'sim_node', 'trainer_node'])
def test_console_script_has_a_main(name):
    assert SCRIPTS[name].attr == 'main'
    assert callable(SCRIPTS[name].load())


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason='not in a virtual environment')
def test_dpg_robot_needs_nothing_sourced():
    """The command of the virtual environment runs with an empty environment, in any folder."""
    command = Path(sys.prefix, 'bin', 'dpg-robot')
    result = subprocess.run(
        [command, '--help'], cwd='/', env={'HOME': os.environ.get('HOME', '/')},
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 'demo' in result.stdout


@pytest.mark.parametrize('path', REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_are_pinned(path):
    lines = requirement_lines(path)
    assert lines
    assert not [line for line in lines if not PIN.fullmatch(line)]


def test_constraints_agree_with_the_requirements():
    constraints = {
        line.lower() for line in requirement_lines(ROOT / 'requirements' / 'constraints.txt')}
    pins = {
        line.lower() for path in REQUIREMENTS
        for line in requirement_lines(path) if not line.startswith('-r')}
    assert pins <= constraints


def test_constraints_hold_for_every_python():
    """Each package has at most one version for any Python."""
    lines = requirement_lines(ROOT / 'requirements' / 'constraints.txt')
    rules = {}
    for line in lines:
        pin, _, marker = line.partition(' ; ')
        rules.setdefault(pin.partition('==')[0], []).append(marker)
    doubled = {name: markers for name, markers in rules.items() if len(markers) > 1}
    for name, markers in doubled.items():
        limits = [re.fullmatch(r"python_version (<|>=) '(.+)'", marker) for marker in markers]
        assert all(limits), name
        assert [limit.group(1) for limit in limits] == ['<', '>='], name
        assert len({limit.group(2) for limit in limits}) == 1, name
