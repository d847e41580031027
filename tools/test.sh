#!/usr/bin/env bash
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

# Build with colcon and test what was built, with the Python given as the only argument
# ('make test').
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ $(pwd -P) == *[[:space:]]* ]]; then
    echo "make test: '$(pwd -P)' has a space in it, which colcon's scripts cannot take: \
move the folder to a path without spaces" >&2
    exit 2
fi
python=$1
venv=$(cd "$(dirname "$python")/.." && pwd)

# Not the colcon command: the one of a ROS installation would run the system's Python.
colcon() {
    "$python" -c 'import sys; from colcon_core.command import main; sys.exit(main())' \
        --log-base log "$@" < /dev/null
}

# A domain of its own, whatever the caller's is: no test may ever command somebody's robot.
ROS_DOMAIN_ID=$((RANDOM % 101 + 1))
export ROS_DOMAIN_ID
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
# Where the rclpy wheels keep their share folders; a sourced ROS comes after and is unharmed.
export AMENT_PREFIX_PATH=$venv${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
MUJOCO_GL=$("$python" tools/headless_gl.py --no-install)
export MUJOCO_GL
# Not ~/.ros: a build machine may have no HOME, and rclpy.init then fails.
export ROS_LOG_DIR=${ROS_LOG_DIR:-$PWD/log/ros}
mkdir -p "$ROS_LOG_DIR"

rm -rf build/dpg_robot install/dpg_robot
colcon build --base-paths . --packages-select dpg_robot
set +u
source install/local_setup.bash
set -u

# Two processes, which share out the files; test/conftest.py says what waits until the end.
# 'python -m pytest' puts the current folder, the source tree, before the installed package; a safe
# path (Python 3.11 or later) does not, so that what is tested is what was installed.
result=0
PYTHONSAFEPATH=1 colcon test --base-paths . --packages-select dpg_robot \
    --return-code-on-test-failure --event-handlers console_direct+ \
    --pytest-args -n 2 --dist loadgroup --no-loadscope-reorder 2>&1 || result=$?

# pytest finding nothing to run counts as success with colcon.
if ! grep -q '<testcase ' build/dpg_robot/pytest.xml; then
    echo 'make test: no test was found, so nothing was tested'
    result=1
fi
grep -h -E '^=+ .* in [0-9.]+s.* =+$' log/latest_test/dpg_robot/stdout.log | tail -n 1 || true
exit "$result"
