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

# Make, or complete, the virtual environment given as the only argument ('make venv').
#
# With a sourced ROS 2 Jazzy it is built on the Python that ROS uses and sees ROS's packages;
# otherwise rclpy comes from wheels. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

fail() {
    echo "make venv: $1" >&2
    exit 2
}

# The first line of every script in the environment is a path, and ends at a space.
[[ $(pwd -P) != *[[:space:]]* ]] || fail "'$(pwd -P)' has a space in it, which the scripts of a \
virtual environment cannot take: move the folder to a path without spaces"

minor_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null
}

# ROS images set ROS_DISTRO without sourcing, so it takes both variables to say 'sourced'.
ros=no
if [[ -n ${ROS_DISTRO:-} && -n ${AMENT_PREFIX_PATH:-} ]]; then
    [[ $ROS_DISTRO == jazzy ]] || fail "a ROS 2 $ROS_DISTRO is sourced, but this package is for \
jazzy: source that one, or none (rclpy then comes from wheels), in a new shell"
    ros=yes
fi

usable() {
    case $(minor_version "$1") in
        3.10 | 3.11 | 3.12 | 3.13) [[ $ros == no ]] || "$1" -c 'import rclpy' 2> /dev/null ;;
        *) false ;;
    esac
}

python=
for candidate in ${PYTHON:-python3 /usr/bin/python3 python3.12 python3.11 python3.13 python3.10}; do
    if usable "$candidate"; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    found=${PYTHON:-python3}
    found="$found is $(minor_version "$found" || echo missing)"
    [[ $ros == no ]] || fail "no Python from 3.10 to 3.13 can import the rclpy of the sourced ROS 2 \
($found): is ros-jazzy-rclpy installed?"
    fail "Python 3.10 to 3.13 is needed, and $found: install one (on Ubuntu 24.04: \
sudo apt install python3.12 python3.12-venv), or name it: make venv PYTHON=/path/to/python3"
fi
version=$(minor_version "$python")

sees_ros=false
[[ $ros == no ]] || sees_ros=true
if [[ -e $venv ]] && ! {
    [[ $(minor_version "$venv/bin/python") == "$version" ]] &&
        grep -q "^include-system-site-packages = $sees_ros" "$venv/pyvenv.cfg" &&
        "$venv/bin/python" -m pip --version > /dev/null 2>&1
}; then
    # Interrupted at its very start, 'python -m venv' leaves folders and not one file.
    [[ -f $venv/pyvenv.cfg || -z $(find -H "$venv" -type f -print -quit) ]] ||
        fail "$venv is no virtual environment: move it out of the way"
    echo "$venv is incomplete, or was made for another Python or ROS: making it anew"
    rm -rf "$venv"
fi

if [[ ! -e $venv ]]; then
    "$python" -c 'import ensurepip, venv' 2> /dev/null || fail "$python has no venv module: \
sudo apt install python$version-venv"
    options=()
    [[ $ros == no ]] || options+=(--system-site-packages)
    "$python" -m venv "${options[@]}" "$venv"
fi

requirements=(-r requirements/train.txt -r requirements/test.txt)
if [[ $ros == no ]]; then
    requirements+=(-r requirements/ros-wheels.txt)
fi
if [[ $ros == no ]] || ! "$python" -c 'import colcon_ros, colcon_core' 2> /dev/null; then
    requirements+=(-r requirements/colcon.txt)
fi

pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check install)
echo "installing into $venv for Python $version (some minutes the first time)"
[[ $ros == no ]] || echo "(what pip says of packages outside $venv does no harm)"
"${pip[@]}" --constraint requirements/constraints.txt "${requirements[@]}"
"${pip[@]}" --no-deps --no-build-isolation --editable .

# A missing system library or a mixed-up ROS shows here, not in the middle of a training.
"$venv/bin/python" -c 'import mujoco, onnxruntime, rclpy, std_msgs.msg, torch' ||
    fail "$venv is installed, but not everything in it can be imported: see the error above"
[[ -x $venv/bin/dpg-robot ]] || fail "$venv/bin/dpg-robot was not installed"
