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

"""A lifecycle node whose transitions tell why they failed, and that no request can end."""

from __future__ import annotations

import traceback

from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from dpg_robot.contract.strict import SpecError


def _guarded(hook, goal, on_exception):
    """Run a hook in a transition; rclpy itself swallows what it raises."""
    def transition(self, state):
        self.failure = ''
        try:
            getattr(self, hook)()
        except Exception as error:
            # A shutdown that fails is the end too.
            self.lifecycle = goal if hook == 'shutdown' else state.label
            self._tell_failure(hook, error)
            return on_exception
        self.lifecycle = goal
        self.report()
        return TransitionCallbackReturn.SUCCESS
    return transition


# What each transition that can be asked for is called, and where it comes from.
_TRANSITIONS = {
    Transition.TRANSITION_CONFIGURE: ('configure', 'unconfigured'),
    Transition.TRANSITION_ACTIVATE: ('activate', 'inactive'),
    Transition.TRANSITION_DEACTIVATE: ('deactivate', 'active'),
    Transition.TRANSITION_CLEANUP: ('cleanup', 'inactive')}


class ManagedNode(LifecycleNode):
    """A node that is configured, activated, deactivated, cleaned up and shut down by hooks.

    A subclass has the hooks ``configure``, ``activate``, ``deactivate``, ``cleanup``, ``shutdown``
    and ``report``. One that raises makes the transition fail, with the reason in the log and in
    ``failure``; a ``deactivate`` that raises leads to a ``shutdown`` and to unconfigured, because
    the node must not stay active. ``lifecycle`` is the primary state.
    """

    on_configure = _guarded('configure', 'inactive', TransitionCallbackReturn.FAILURE)
    on_activate = _guarded('activate', 'active', TransitionCallbackReturn.FAILURE)
    on_deactivate = _guarded('deactivate', 'inactive', TransitionCallbackReturn.ERROR)
    on_cleanup = _guarded('cleanup', 'unconfigured', TransitionCallbackReturn.FAILURE)
    on_shutdown = _guarded('shutdown', 'finalized', TransitionCallbackReturn.FAILURE)

    def __init__(self, name: str):
        """Offer the lifecycle services."""
        super().__init__(name)
        self.lifecycle, self.failure, self._is_starting = 'unconfigured', '', False
        # rclpy raises where a state does not know the transition, which would end the node.
        self._answer, service = self._service_change_state.callback, self._service_change_state
        service.callback = self._change_state

    def _change_state(self, request, response):
        try:
            return self._answer(request, response)
        except Exception as error:
            wanted, start = _TRANSITIONS.get(request.transition.id, ('', ''))
            reason = f'{wanted} must come from {start}, got {self.lifecycle}' \
                if wanted and self.lifecycle != start else ' '.join(str(error).split())
            self.get_logger().error(f'transition refused: {reason}')
            response.success = False
            return response

    def start(self) -> None:
        """Configure and activate, without a lifecycle manager.

        :raises SpecError: if that is not possible; the error is not logged too.
        """
        self._is_starting = True
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                raise SpecError(self.failure)
        self._is_starting = False

    def _tell_failure(self, hook, error):
        is_known = isinstance(error, SpecError)
        reason = str(error) if is_known else f'{hook} failed: {type(error).__name__}: {error}'
        self.failure = ' '.join(reason.split())
        if not is_known:
            self.get_logger().error(traceback.format_exc())
        if not self._is_starting:
            self.get_logger().error(self.failure)
        self.report()

    def on_error(self, state):
        """Do what a shutdown does; then it can be configured again."""
        try:
            self.shutdown()
        except Exception:
            self.get_logger().error(traceback.format_exc())
        self.lifecycle = 'unconfigured'
        self.report()
        return TransitionCallbackReturn.SUCCESS
