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

"""Package dpg_robot for colcon (ament_python) and for pip install -e."""

from glob import glob
import os

from setuptools import find_packages, setup

PACKAGE = 'dpg_robot'


def files(pattern):
    """Return the files, not folders, that match a pattern, in a fixed order."""
    return sorted(path for path in glob(pattern) if os.path.isfile(path))


setup(
    name=PACKAGE,
    version='0.1.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', files('launch/*.xml')),
        (f'share/{PACKAGE}/config', files('config/*.yaml')),
        (f'share/{PACKAGE}/models', files('models/*')),
        (f'share/{PACKAGE}/robots/six_axis', files('robots/six_axis/*.xml')),
    ],
    # What it runs on is pinned in requirements/ and declared to ROS in package.xml.
    install_requires=['setuptools'],
    # colcon looks for exactly this to choose pytest over unittest.
    extras_require={'test': ['pytest']},
    python_requires='>=3.10',
    zip_safe=True,
    author='The dpg_robot Authors',
    maintainer='The dpg_robot Authors',
    maintainer_email='maintainers@dpg-robot.invalid',
    description='Denoising policy gradients for robots: train in MuJoCo, run in ROS 2.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'dpg-robot = dpg_robot.cli:main',
            'policy_node = dpg_robot.nodes.policy_node:main',
            'sim_node = dpg_robot.nodes.sim_node:main',
            'trainer_node = dpg_robot.nodes.trainer_node:main',
        ],
    },
)
