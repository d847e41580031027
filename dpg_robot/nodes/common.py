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

"""What the nodes share: parameters from a table, diagnostics, and how to start and stop."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from typing import Any, Callable, NamedTuple, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
import rclpy
from rclpy.duration import Duration
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from dpg_robot.contract.strict import SpecError
from dpg_robot.nodes.output import output_without_waiting

NEWEST_RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Parameter(NamedTuple):
    """A parameter of a node; its type is that of the default."""

    name: str
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True


def declare_parameters(node: Node, table: Sequence[Parameter]) -> dict[str, Any]:
    """Declare a table of parameters and return their values by name.

    Whatever else was given is told in the log: a file of parameters may be for other nodes too.

    :raises SpecError: if a value has the wrong type, range or is not one of the choices.
    """
    values = {}
    for entry in table:
        descriptor = ParameterDescriptor(description=entry.description, read_only=entry.read_only)
        if entry.choices:
            descriptor.additional_constraints = 'one of ' + ', '.join(entry.choices)
        if entry.minimum is not None:
            if isinstance(entry.default, float):
                descriptor.floating_point_range = [FloatingPointRange(
                    from_value=entry.minimum, to_value=entry.maximum)]
            else:
                descriptor.integer_range = [IntegerRange(
                    from_value=entry.minimum, to_value=entry.maximum, step=1)]
        try:
            value = node.declare_parameter(entry.name, entry.default, descriptor).value
        except ParameterException as error:
            given = node._parameter_overrides.get(entry.name)
            raise SpecError(f'parameter {entry.name} must be {_rule(entry, given)}, got '
                            f'{given.value if given else error}') from error
        if value is None:  # an empty list has no type in ROS, and arrives as nothing
            value = entry.default
        if entry.choices and value not in entry.choices:
            raise SpecError(f'parameter {entry.name} must be one of '
                            f'{", ".join(entry.choices)}; got {value!r}')
        values[entry.name] = value
    for name in node._parameter_overrides:  # what was given; ROS offers no other way to it
        if not node.has_parameter(name) and not name.startswith('qos_overrides.'):
            node.get_logger().warning(f'there is no parameter {name}: it is ignored')
    return values


def _rule(entry, given):
    if entry.minimum is None or given is None or type(given.value) is not type(entry.default):
        return {float: 'a number with a point, such as 1.0', int: 'an integer', str: 'text',
                bool: 'true or false', list: 'a list of texts'}[type(entry.default)]
    return f'from {entry.minimum} to {entry.maximum}'


def decimal(value: float) -> str:
    """Write a number as plain decimal digits, which any program reads back."""
    return str(value) if isinstance(value, int) else f'{value:.6f}'


def flatten(values: dict, prefix: str = '') -> dict[str, str]:
    """Turn nested values into dotted keys and strings, for diagnostics."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f'{prefix}{key}.'))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = decimal(value)
        else:
            flat[prefix + key] = str(value)
    return flat


class Diagnostics:
    """Publish the statuses of a node's parts on ``/diagnostics``."""

    LEVELS = {'OK': DiagnosticStatus.OK, 'WARN': DiagnosticStatus.WARN,
              'ERROR': DiagnosticStatus.ERROR}

    def __init__(self, node: Node, part: str, hardware_id: str):
        """Name the status after the node and one of its parts."""
        self._node, self._part = node, part
        self._name = node.get_fully_qualified_name().lstrip('/')
        self.hardware_id = hardware_id
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def publish(self, level: str, message: str, values: dict) -> None:
        """Publish a status.

        :param level: 'OK', 'WARN' or 'ERROR'.
        :param values: may be nested; keys are joined with dots, numbers written in decimals.
        """
        self.send([self.status(self._part, level, message, values)])

    def status(self, part: str, level: str, message: str, values: dict) -> DiagnosticStatus:
        """Return the status of a part, to be sent."""
        return DiagnosticStatus(
            level=self.LEVELS[level], name=f'{self._name}: {part}', message=message,
            hardware_id=self.hardware_id,
            values=[KeyValue(key=k, value=v) for k, v in flatten(values).items()])

    def send(self, statuses: Sequence[DiagnosticStatus]) -> None:
        """Publish statuses, with one stamp."""
        array = DiagnosticArray(status=list(statuses))
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def flush(publishers: Sequence) -> None:
    """Wait for a moment until the last messages have arrived; shutting down could lose them."""
    for publisher in publishers:
        publisher.wait_for_all_acked(Duration(seconds=0.3))


def _catch_signals():
    """Turn the ending signals into bytes in a pipe.

    A handler must not set an event: that takes a lock, and a second signal that interrupts the
    first one's handler would wait for it for ever. The interpreter itself writes to the pipe,
    whichever thread the signal meets.

    :return: a function that waits for a signal, and one that stands for a signal.
    """
    # The pipe stays open, because a thread that outlives its grace may still write to it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in ENDING_SIGNALS:
        # What nohup started shall outlive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    return (lambda: os.read(reader, 1)), (lambda: os.write(writer, b'\0'))


def run(make_node: Callable[[threading.Event], Node], args: Sequence[str] | None,
        grace_s: float | None = 5.0) -> int:
    """Run a node whose ``loop()`` has a thread of its own, until one of :data:`ENDING_SIGNALS`.

    The main thread only waits for signals, so that ``stop`` is set at once; ``loop`` must return
    when ``stop`` is set, and publishes last words before it does, because the ROS context is
    still valid then. A thread executes callbacks until ``loop`` has returned, or its time is
    over: whatever watches ``loop`` watches its end too.

    :param make_node: makes the node from the ``stop`` event.
    :param grace_s: how long ``loop`` may take to return [s]; None for as long as it takes.
    :return: the exit code: 0, or 2 after a startup error, 1 after a failure of the loop.
    """
    with output_without_waiting():
        return _run(make_node, args, grace_s)


def _run(make_node, args, grace_s):
    stop, failed, ended = threading.Event(), threading.Event(), threading.Event()
    wait_for_end, end = _catch_signals()
    node = None
    try:
        _check_arguments(sys.argv[1:] if args is None else args)
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node(stop)
    except (ValueError, RuntimeError, NameValidationException, ParameterException) as error:
        name = re.sub('(?<=[a-z])(?=[A-Z])', '_', make_node.__name__).lower()
        line = ' '.join(str(error).split())
        print(f'{name}: {line}', file=sys.stderr, flush=True)
        _shut_down(node)
        return 2

    def guard(function):
        try:
            function()
        except Exception:
            failed.set()
            node.get_logger().fatal(traceback.format_exc())
        finally:
            end()

    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin():
        # Each look keeps the interpreter from the loop for half a millisecond: no idle ones. So
        # a coroutine goes on when something else wakes the executor, such as a node's timer.
        while not ended.is_set():
            executor.spin_once()

    threads = [threading.Thread(target=guard, args=(f,), daemon=True) for f in (node.loop, spin)]
    for thread in threads:
        thread.start()
    wait_for_end()
    stop.set()
    for thread in threads:
        thread.join(timeout=grace_s)
        executor.create_task(ended.set)  # which wakes it too
    executor.shutdown(timeout_sec=1.0)
    _shut_down(node)
    return 1 if failed.is_set() else 0


def _check_arguments(arguments):
    left = remove_ros_args(list(arguments))
    if left:
        raise SpecError('arguments must follow --ros-args, as in --ros-args -p NAME:=VALUE; got '
                        + ' '.join(left))


def _shut_down(node):
    if node is not None:
        node.destroy_node()
    rclpy.try_shutdown()
