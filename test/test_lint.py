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

"""The linters, with the settings in pyproject.toml."""

from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent


def test_ruff():
    result = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format=concise', '.'],
        cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_reads_the_package():
    result = subprocess.run(
        [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--show-files', '.'],
        cwd=ROOT, capture_output=True, text=True, check=True)
    read = {Path(line).relative_to(ROOT).as_posix() for line in result.stdout.splitlines()}
    assert {'dpg_robot/contract/spec.py', 'setup.py', 'test/test_lint.py'} <= read
    assert not [path for path in read if path.startswith(('build/', 'install/', '.venv/'))]
