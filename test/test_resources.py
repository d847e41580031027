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

"""Tests of where the package's own files are found."""

import os
from pathlib import Path

import pytest

from dpg_robot.contract.strict import SpecError
from dpg_robot.resources import find_file, share_path, task_file, task_names


def test_a_file_of_the_package():
    path = share_path('config', 'fetch_reach.yaml')
    assert path.read_text().strip()
    assert path.parts[-2:] == ('config', 'fetch_reach.yaml')


def test_without_a_ros_environment(monkeypatch):
    if not Path(share_path('config')).parent.joinpath('setup.py').exists():
        pytest.skip('an installed package is found through the ament index only')
    monkeypatch.delitem(os.environ, 'AMENT_PREFIX_PATH', raising=False)
    assert share_path('config', 'fetch_reach.yaml').exists()


def test_a_missing_file_tells_where_it_was_looked_for():
    with pytest.raises(SpecError, match=r'models/none.onnx does not come with .* looked for /'):
        share_path('models', 'none.onnx')


def test_a_task_file_by_path_or_by_name():
    assert task_file('some/where.yaml') == Path('some/where.yaml')
    assert task_file('fetch_reach') == share_path('config', 'fetch_reach.yaml')
    assert 'fetch_reach' in task_names()
    assert 'fetch_robot' not in task_names()  # parameters of a node
    with pytest.raises(SpecError, match='^fetch_robot is not a task; tasks: .*fetch_reach'):
        task_file('fetch_robot')


def test_a_file_by_path_or_in_a_ros_package():
    assert find_file('some/where.xml', 'it') == Path('some/where.xml')
    address = 'package://dpg_robot/config/fetch_reach.yaml'
    assert find_file(address, 'it') == share_path('config', 'fetch_reach.yaml')
    with pytest.raises(SpecError, match='^it must be in a ROS package that is installed in a '
                       'sourced workspace, got package://no_such/arm.xml$'):
        find_file('package://no_such/arm.xml', 'it')
    with pytest.raises(SpecError, match='^it: urdf/arm.urdf does not come with this'):
        find_file('package://dpg_robot/urdf/arm.urdf', 'it')
