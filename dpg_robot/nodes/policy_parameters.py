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

"""The parameters of policy_node."""

from __future__ import annotations

from dpg_robot.nodes.common import Parameter
from dpg_robot.runtime.control import MODES
from dpg_robot.runtime.inputs import ZERO_STAMPS

PARAMETERS = (
    Parameter('model', '', 'Policy file (.onnx); empty for the fetch_reach policy that comes '
              'with the package. Setting it exchanges the running policy.', read_only=False),
    Parameter('watch_model', False, 'Load the policy file again whenever it changes.'),
    Parameter('model_topic', '', 'Topic that announces policy files to exchange to, such as '
              'trainer_node/model; empty for none.'),
    Parameter('autostart', True, 'Configure and activate at the start; otherwise wait for the '
              'lifecycle services.'),
    Parameter('estop_listen_s', 2.0, 'How long from its start on the node listens for an '
              'emergency stop that is already pressed, before a policy may command [s].',
              0.0, 60.0),
    Parameter('mode', 'deterministic', 'Use the policy without its noise, or sample it.',
              choices=MODES),
    Parameter('seed', 0, 'Seed of the sampled mode.', 0, 2**31 - 1),
    Parameter('blend_s', 0.2, 'How long a policy that takes command blends in from the last '
              'command [s]; 0 for at once.', 0.0, 10.0),
    Parameter('recover_ticks', 3, 'Ticks in a row without a fault before the policy takes command '
              'again, once a fault took it away.', 1, 1000),
    Parameter('rate_factor', 1.0, "Run this many times faster than the spec's control rate; only "
              'for a simulation that is itself so much faster than real time: rate limits and '
              'ages are in simulated seconds.', 0.1, 20.0),
    Parameter('future_tolerance_s', 0.05, 'How far a stamp may be ahead of the clock here before '
              'its message is refused [s].', 0.0, 10.0),
    Parameter('zero_stamp', 'arrival', 'Take a message without a stamp as measured when it '
              'arrives, or refuse it.', choices=ZERO_STAMPS),
    Parameter('cpu', -1, 'Core for the control thread; -1 to leave it to the scheduler.',
              -1, 1023),
    Parameter('realtime_priority', 50, 'SCHED_FIFO priority of the control thread, where it is '
              'permitted; 0 for none.', 0, 99),
    Parameter('wake_latency_us', -1, 'How long any core of this computer may take to wake [us], '
              'where the request is permitted; 0: none sleeps; -1 for whatever the system wants.',
              -1, 1000000),
    Parameter('record_folder', '', 'Folder of the flight recorder; empty for no recording.'),
    Parameter('record_mb', 256, 'Bound of all recordings in that folder [MB].', 2, 1000000),
    Parameter('diagnostics_period_s', 1.0, 'Time between two diagnostics [s].', 0.1, 60.0),
)
