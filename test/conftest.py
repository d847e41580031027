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

"""Every test run gets its own corner of the ROS network, and strict messages."""

import fcntl
import importlib.util
import os

# Before anything imports a message class, which reads this once.
os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'

from pathlib import Path  # noqa: E402
import sys  # noqa: E402

import pytest  # noqa: E402

import dpg_robot  # noqa: E402

# Those that look at the clock while processes talk to each other.
REAL_TIME = ('bench/test_latency.py', 'nodes/', 'runtime/', 'test_demo.py',
             'test_replay_flight.py')
NOT_REAL_TIME = ('nodes/test_trainer_node.py',)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Put tests in real time last; with '-n', these in one process, others by the file."""
    items.sort(key=_is_timed)
    if config.getoption('dist', 'no') == 'loadgroup':
        for item in items:
            group = 'real time' if _is_timed(item) else _file(item)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Run a test in real time beside no other, of whichever process."""
    with open(__file__) as turn:
        fcntl.flock(turn, fcntl.LOCK_EX if _is_timed(item) else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:  # closing alone would leave it to a process forked meanwhile
            fcntl.flock(turn, fcntl.LOCK_UN)


def _is_timed(item):
    file = _file(item)
    return file.startswith(REAL_TIME) and file not in NOT_REAL_TIME


def _file(item):
    return item.path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture(scope='session', autouse=True)
def ros_environment():
    """Keep this run's topics away from other runs, and let children import what we test."""
    # Domains above 101 can meet the ports that Linux hands out to clients.
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 101)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    package = str(Path(dpg_robot.__file__).resolve().parent.parent)
    paths = [package, *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    os.environ['PYTHONPATH'] = os.pathsep.join(path for path in paths if path)


@pytest.fixture(scope='session')
def load_benchmark():
    """Return a function that returns a script of benchmarks/ as a module."""
    def load(name):
        path = Path(__file__).resolve().parents[1] / 'benchmarks' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses ask for it
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture(scope='module')
def ros(tmp_path_factory):
    """Return a node in this process, with helpers to start others as processes."""
    from ros_harness import Harness
    harness = Harness(tmp_path_factory.mktemp('nodes'))
    yield harness
    harness.close()
