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

"""Where the package's own files (models, configurations) lie, installed or not."""

from __future__ import annotations

from pathlib import Path

from dpg_robot.contract.strict import SpecError

PACKAGE_URI = 'package://'


def share_path(*parts: str) -> Path:
    """Return the path of a file that comes with the package.

    :param parts: for example ``'models', 'fetch_reach.onnx'``.
    :raises SpecError: if neither the installed share directory nor the source tree has it.
    """
    looked = []
    # Code that runs from a source tree takes that tree's files, whatever else is installed.
    source = Path(__file__).resolve().parent.parent
    for root in (source if (source / 'package.xml').exists() else None, _ament_share()):
        if root is not None:
            path = root.joinpath(*parts)
            if path.exists():
                return path
            looked.append(str(path))
    raise SpecError(f'{"/".join(parts)} does not come with this installation; looked for '
                    f'{" and ".join(looked)}')


def find_file(address: str, name: str) -> Path:
    """Return the path of a file, given as a path or as ``package://package/path``.

    :param name: what to call it in errors.
    :raises SpecError: if there is no such package, or this one lacks the file.
    """
    if not address.startswith(PACKAGE_URI):
        return Path(address)
    package, *parts = address.removeprefix(PACKAGE_URI).split('/')
    if package == 'dpg_robot':
        try:
            return share_path(*parts)
        except SpecError as error:
            raise SpecError(f'{name}: {error}') from error
    share = _ament_share(package)
    if share is None:
        raise SpecError(f'{name} must be in a ROS package that is installed in a sourced '
                        f'workspace, got {address}')
    return share.joinpath(*parts)


def task_names() -> list[str]:
    """Return the names of the task files that come with the package."""
    return sorted(path.stem for path in share_path('config').glob('*.yaml')
                  if not path.stem.endswith('_robot'))


def task_file(name: str | Path) -> Path:
    """Return the path of a task file, given as a path or as the name of a packaged one.

    :raises SpecError: if it has no suffix and none of that name comes with the package.
    """
    if Path(name).suffix:
        return Path(name)
    if str(name) not in task_names():
        raise SpecError(f'{name} is not a task; tasks: {", ".join(task_names())}; '
                        'or give the path of a .yaml file')
    return share_path('config', f'{name}.yaml')


def _ament_share(package: str = 'dpg_robot') -> Path | None:
    try:
        from ament_index_python.packages import get_package_share_directory
    except ImportError:
        return None
    try:
        return Path(get_package_share_directory(package))
    except (LookupError, ValueError, OSError):  # not in the index, or no AMENT_PREFIX_PATH
        return None
