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

"""Print the MUJOCO_GL with which MuJoCo can draw here without a screen.

Tries egl, then osmesa, by drawing one frame with each. If neither works, it installs their
libraries, where it may and there is apt-get, and tries again. Prints 'disable', and says so on
standard error, if frames have to be left out. Run it with the Python that has mujoco.
"""

import os
import shutil
import subprocess
import sys

BACKENDS = {'egl': ('libegl1', 'libgl1-mesa-dri'), 'osmesa': ('libosmesa6',)}
DRAW_LIMIT_S = 60
INSTALL_LIMIT_S = 300

DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 2"/><geom size=".3" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 48, 64) as renderer:
    renderer.update_scene(data)
    if renderer.render().std() < 1:
        raise SystemExit('the frame is blank')
"""


def run(command, limit_s, **env):
    """Return whether a command succeeds within a time limit, all output thrown away."""
    try:
        return subprocess.run(
            command, env={**os.environ, **env}, timeout=limit_s, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def draws(backend):
    """Return whether MuJoCo can draw with this backend, tried in a process of its own."""
    return run([sys.executable, '-c', DRAW], DRAW_LIMIT_S, MUJOCO_GL=backend)


def install(packages):
    """Return whether these system packages could be installed."""
    apt = [] if os.geteuid() == 0 else ['sudo', '-n']
    if not shutil.which('apt-get') or (apt and not run([*apt, 'true'], 10)):
        return False
    print(f'installing {" ".join(packages)} to draw without a screen', file=sys.stderr)
    apt += ['env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-qq']
    return (run([*apt, 'update'], INSTALL_LIMIT_S)
            and run([*apt, 'install', '-y', '--no-install-recommends', *packages],
                    INSTALL_LIMIT_S))


def choose(may_install):
    """Return the first backend that draws, or 'disable'."""
    wanted = os.environ.get('MUJOCO_GL')
    backends = dict.fromkeys([wanted, *BACKENDS] if wanted else BACKENDS)
    for backend in backends:
        if draws(backend):
            return backend
    if may_install:
        for backend, packages in BACKENDS.items():
            if install(packages) and draws(backend):
                return backend
    print('MuJoCo can draw neither with egl nor with osmesa: frames will be left out '
          '(on Ubuntu: sudo apt install libegl1 libgl1-mesa-dri)', file=sys.stderr)
    return 'disable'


if __name__ == '__main__':
    print(choose(may_install='--no-install' not in sys.argv[1:]))
