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

"""Which part of the package may import what, asked of a fresh interpreter."""

import ast
from pathlib import Path
import subprocess
import sys

from policy_files import joint_spec, write_model
import pytest
from std_msgs.msg import Float64MultiArray

import dpg_robot

PACKAGE = Path(dpg_robot.__file__).resolve().parent
HEAVY = {'torch', 'mujoco', 'gymnasium', 'gymnasium_robotics', 'onnx', 'tensorboard', 'matplotlib'}
WITH_SIM = {'torch', 'onnxruntime', 'rclpy', 'tensorboard', 'matplotlib'}
# For each room, what importing all of it must not load.
FORBIDDEN = {
    'contract': HEAVY | {'onnxruntime', 'rclpy', 'yaml', 'scipy', 'pydantic'},
    'runtime': HEAVY | {'rclpy', 'yaml', 'scipy', 'pydantic'},
    'sim': WITH_SIM, 'sim/warp': WITH_SIM - {'torch'},
    'learn': {'mujoco', 'gymnasium_robotics', 'rclpy', 'onnxruntime'},
    'bench': {'rclpy', 'onnxruntime'}}
# And which other rooms.
CLOSED_ROOMS = {
    'contract': {'runtime', 'sim', 'learn', 'nodes'}, 'runtime': {'sim', 'learn', 'nodes'},
    'sim': {'runtime', 'learn', 'nodes'}, 'sim/warp': {'runtime', 'learn', 'nodes'},
    'learn': {'runtime', 'sim', 'nodes'}, 'bench': {'runtime', 'nodes'}}


def modules_of(room):
    """Return the names of all modules of a folder of the package."""
    return sorted(f'dpg_robot.{room.replace("/", ".")}.{path.stem}'
                  for path in (PACKAGE / room).glob('*.py') if path.stem != '__init__')


def loaded_after(*modules):
    """Return the modules that a fresh interpreter has loaded after importing some."""
    code = f'import sys, {", ".join(modules)}; print("loaded", *sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition('loaded ')[2].split())


@pytest.mark.parametrize('room', FORBIDDEN)
def test_a_room_keeps_to_its_libraries(room):
    modules = modules_of(room)
    assert modules
    loaded = loaded_after(*modules)
    assert set(modules) <= loaded
    assert not FORBIDDEN[room] & loaded
    rooms = {name.split('.')[1] for name in loaded if name.startswith('dpg_robot.')}
    assert not CLOSED_ROOMS[room] & rooms


def test_the_contract_needs_numpy_and_the_standard_library_only():
    bare = loaded_after('numpy')
    extra = {name.partition('.')[0] for name in loaded_after(*modules_of('contract')) - bare}
    assert extra <= {'dpg_robot'} | sys.stdlib_module_names


def test_policy_node_loads_no_training_library():
    assert not HEAVY & loaded_after('dpg_robot.nodes.policy_node')


def test_the_package_itself_imports_nothing():
    before = loaded_after('sys')
    assert loaded_after('dpg_robot') - before == {'dpg_robot'}
    for path in PACKAGE.rglob('__init__.py'):
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))], path


def imports_of(path):
    """Return the modules that a file names in imports, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return names


@pytest.mark.parametrize('room', ['.', 'contract', 'runtime', 'sim', 'sim/warp', 'learn'])
def test_nothing_outside_nodes_imports_nodes(room):
    files = list((PACKAGE / room).glob('*.py'))
    assert files
    for path in files:
        assert not [name for name in imports_of(path) if name.startswith('dpg_robot.nodes')], path


def test_learn_never_imports_sim_not_even_inside_a_function():
    for path in (PACKAGE / 'learn').glob('*.py'):
        assert not [name for name in imports_of(path) if name.startswith('dpg_robot.sim')], path


def test_policy_node_runs_where_nothing_else_is_installed(ros, tmp_path):
    """Importing a blocked module fails, as it would on a robot that lacks it."""
    blocked = sorted(HEAVY)
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked}))
from dpg_robot.nodes.policy_node import main
code = main()
print('loaded', *(name for name, module in sys.modules.items() if module is not None))
sys.exit(code)
"""
    model = write_model(tmp_path / 'model.onnx', joint_spec(), [[0.0] * 2] * 4)
    commands = ros.listen(Float64MultiArray, 'effort/commands')
    process = ros.start('policy_node', code=code, model=model)
    ros.wait(lambda: len(commands) > 5, what='commands of a robot without training libraries')
    assert ros.stop(process) == 0
    loaded = set(process.log.read_text().rpartition('loaded ')[2].split())
    assert 'onnxruntime' in loaded
    assert not HEAVY & loaded


def test_the_block_blocks():
    """The proof above would be empty if a None in sys.modules did not stop an import."""
    code = "import sys; sys.modules['torch'] = None; import torch"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode != 0
    assert 'ModuleNotFoundError' in result.stderr or 'ImportError' in result.stderr
