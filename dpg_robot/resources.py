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


def _ament_share() -> Path | None:
    try:
        from ament_index_python.packages import get_package_share_directory
    except ImportError:
        return None
    try:
        return Path(get_package_share_directory('dpg_robot'))
    except (LookupError, ValueError, OSError):  # not in the index, or no AMENT_PREFIX_PATH
        return None
