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

# All that is needed to use and to test dpg_robot. 'make' alone lists the targets.

SHELL := /bin/bash
VENV := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
DEMO_ARGS :=

# One stamp for each kind of environment, so that sourcing ROS, or not, makes the other kind.
ifneq ($(and $(ROS_DISTRO),$(AMENT_PREFIX_PATH)),)
STAMP := $(VENV)/.ready-$(ROS_DISTRO)
else
STAMP := $(VENV)/.ready-wheels
endif

# The rclpy wheels set this for their own environment; a make started from another must not see it.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: help venv demo test clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

venv: $(STAMP)  ## make .venv with everything in it, .venv/bin/dpg-robot too

$(STAMP): $(wildcard requirements/*.txt) setup.py setup.cfg tools/venv.sh
	@tools/venv.sh $(VENV)
	@touch $@

demo: venv  ## train a policy, then let it drive the simulated arm (DEMO_ARGS='--help' for options)
	@export ROS_LOG_DIR=$${ROS_LOG_DIR:-$$PWD/log/ros} && mkdir -p "$$ROS_LOG_DIR" && \
	export MUJOCO_GL=$$($(PYTHON_IN_VENV) tools/headless_gl.py) && \
	$(VENV)/bin/dpg-robot demo $(DEMO_ARGS)

test: venv  ## build with colcon, then run every test and linter
	@tools/test.sh $(PYTHON_IN_VENV)

clean:  ## remove what was built; .venv and runs stay
	rm -rf build install log .pytest_cache .ruff_cache .hypothesis dpg_robot.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +
