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

"""A node inside the test process that talks to nodes in other processes."""

import signal
import subprocess
import sys
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile


def values(status):
    """Return the key values of a diagnostic status."""
    return {item.key: item.value for item in status.values}


class Harness:
    """Listen, publish, start and stop; callbacks run in a thread."""

    def __init__(self, folder):
        self.folder = folder
        self.diagnostics = []
        self.processes = []
        self._clients = {}
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('test_harness', context=self.context)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self):
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.05)

    def _on_diagnostics(self, array):
        self.diagnostics.extend(array.status)

    def start(self, name, arguments=(), code=None, ignored=(), output=None, **parameters):
        """Start a node of the package as a process of its own.

        Its output goes to a file, or to the descriptor ``output`` if there is one.

        It ignores the signals in ``ignored`` and no others, however the tests were started.
        """
        def set_signals():
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        command = [sys.executable] + (
            ['-c', code] if code else ['-m', f'dpg_robot.nodes.{name}'])
        if name == 'policy_node':  # no test starts with a stop pressed, unless it says so
            parameters = {'estop_listen_s': 0.0, **parameters}
        ros_arguments = ['--ros-args', *arguments]
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            ros_arguments += ['-p', f'{key}:={text}']
        log = self.folder / f'{name}_{len(self.processes)}.log'
        with open(log, 'w') as out:
            process = subprocess.Popen(
                command + ros_arguments, stdout=output or out, stderr=subprocess.STDOUT,
                cwd=self.folder,
                preexec_fn=set_signals)
        process.log = log
        self.processes.append(process)
        return process

    def stop(self, process, number=signal.SIGINT):
        """Send a signal and return the exit code."""
        process.send_signal(number)
        return process.wait(timeout=10)

    def listen(self, kind, topic, depth=1000, transient=False):
        """Return a list that grows with the messages of a topic."""
        messages = []
        durability = DurabilityPolicy.TRANSIENT_LOCAL if transient else DurabilityPolicy.VOLATILE
        self.node.create_subscription(
            kind, topic, lambda message: messages.append((time.monotonic(), message)),
            QoSProfile(depth=depth, durability=durability))
        return messages

    def episodes(self, topic='/sim_node/episode'):
        """Return a list that grows with episode results."""
        return self.listen(DiagnosticStatus, topic, transient=True)

    def status(self, name, matches=lambda status: True, timeout=10.0):
        """Wait for a diagnostic status of that name, sent from now on, that matches."""
        first = len(self.diagnostics)

        def find():
            return next((status for status in self.diagnostics[first:]
                         if status.name == name and matches(status)), None)
        return self.wait(find, timeout, f'status {name}')

    def call(self, kind, service, request, timeout=30.0):
        """Call a service; return its answer and how long it took [s]."""
        future, began_s = self.ask(kind, service, request), time.monotonic()
        future.add_done_callback(lambda _: setattr(future, 'ended_s', time.monotonic()))
        self.wait(lambda: hasattr(future, 'ended_s'), timeout, f'answer of {service}')
        return future.result(), future.ended_s - began_s

    def ask(self, kind, service, request):
        """Send a request to a service as soon as it can answer; return the answer's future."""
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service), []
        client, known = self._clients[service]
        self.wait(client.service_is_ready, 30.0, f'service {service}')
        if known != self.processes:
            # Ready is said before the service has found this client; Fast DDS waits for that for
            # 0.1 s, and gives up (ros2/rmw_fastrtps issue 842).
            time.sleep(0.3)
            known[:] = self.processes
        return client.call_async(request)

    def wait(self, condition, timeout=10.0, what='the condition'):
        """Wait until a condition holds, and return its value."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.01)
        logs = '\n'.join(process.log.read_text() for process in self.processes[-3:])
        raise AssertionError(f'{what} was not met in {timeout} s; logs:\n{logs}')

    def close(self):
        """Stop every process and the node."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
