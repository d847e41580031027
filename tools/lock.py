#!/usr/bin/env python3
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

"""Freeze every transitive dependency for every supported Python in requirements/constraints.txt.

    tools/lock.py python3.10 python3.11 python3.12 python3.13

Nothing is installed: pip only resolves, and keeps for each Python the versions found for the one
before it where they fit. What torch alone brings for CUDA is left out: torch pins it itself.
"""

import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile

REQUIREMENTS = Path(__file__).resolve().parent.parent / 'requirements'
FILES = ('runtime', 'ros-wheels', 'train', 'test', 'colcon', 'bench')
CUDA = re.compile(r'(nvidia|cuda)-.*|triton')
HEADER = """\
# Every dependency of requirements/*.txt, frozen for Python {first} to {last}.
# Written by tools/lock.py: change the other files, then run it again.
"""


def resolve(python, constraints=None):
    """Return (Python version, {package: version}), or None if the constraints do not fit."""
    command = [python, '-m', 'pip', 'install', '--quiet', '--dry-run', '--ignore-installed']
    for name in FILES:
        command += ['-r', str(REQUIREMENTS / f'{name}.txt')]
    with tempfile.TemporaryDirectory() as folder:
        if constraints:
            frozen = Path(folder, 'constraints.txt')
            frozen.write_text(''.join(f'{n}=={v}\n' for n, v in constraints.items()))
            command += ['-c', str(frozen)]
        report = Path(folder, 'report.json')
        result = subprocess.run([*command, '--report', str(report)], env=_environment(),
                                capture_output=True, text=True)
        if result.returncode:
            if constraints:
                return None
            raise SystemExit(f'{python} cannot resolve the requirements:\n{result.stderr}')
        data = json.loads(report.read_text())
    packages = {}
    for item in data['install']:
        name = re.sub(r'[-_.]+', '-', item['metadata']['name']).lower()
        if not CUDA.fullmatch(name):
            packages[name] = item['metadata']['version'].partition('+')[0]
    return data['environment']['python_version'], packages


def _environment():
    # A sourced ROS would make its packages look installed.
    return {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}


def merge(resolved):
    """Return the lines of a constraints file from {Python version: {package: version}}.

    :param resolved: in rising order of Python version.
    """
    pythons = list(resolved)
    lines = []
    for name in sorted({name for packages in resolved.values() for name in packages}):
        start = 0
        for i in range(1, len(pythons) + 1):
            version = resolved[pythons[start]].get(name)
            if i < len(pythons) and resolved[pythons[i]].get(name) == version:
                continue
            if version is not None:
                lines.append(f'{name}=={version}' + _marker(pythons, start, i))
            start = i
    return lines


def _marker(pythons, start, stop):
    rules = []
    if start > 0:
        rules.append(f"python_version >= '{pythons[start]}'")
    if stop < len(pythons):
        rules.append(f"python_version < '{pythons[stop]}'")
    return ' ; ' + ' and '.join(rules) if rules else ''


def main(interpreters):
    """Resolve for each interpreter in turn and write the file."""
    if not interpreters:
        raise SystemExit('usage: tools/lock.py PYTHON... (one of each supported version, rising)')
    resolved = {}
    previous = None
    for python in interpreters:
        version, previous = (previous and resolve(python, previous)) or resolve(python)
        resolved[version] = previous
        print(f'Python {version}: {len(previous)} packages')
    pythons = list(resolved)
    text = HEADER.format(first=pythons[0], last=pythons[-1]) + '\n'.join(merge(resolved)) + '\n'
    (REQUIREMENTS / 'constraints.txt').write_text(text)


if __name__ == '__main__':
    main(sys.argv[1:])
