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

"""Tests of a lifecycle node whose hooks may raise, in this process."""

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn

from dpg_robot.contract.strict import SpecError
from dpg_robot.nodes.managed import ManagedNode

SUCCESS, FAILURE, ERROR = (getattr(TransitionCallbackReturn, name)
                           for name in ('SUCCESS', 'FAILURE', 'ERROR'))


class Told(ManagedNode):
    """Raise what it is told to, and note what it did."""

    def __init__(self):
        super().__init__('told')
        self.raises, self.done, self.reports = {}, [], []

    def report(self):
        self.reports.append((self.lifecycle, self.failure))

    def _do(self, hook):
        self.done.append(hook)
        if hook in self.raises:
            raise self.raises[hook]


for name in ('configure', 'activate', 'deactivate', 'cleanup', 'shutdown'):
    setattr(Told, name, lambda self, hook=name: self._do(hook))


@pytest.fixture
def node():
    rclpy.init()
    node = Told()
    yield node
    node.destroy_node()
    rclpy.try_shutdown()


def test_the_whole_life(node):
    told = [trigger() for trigger in (
        node.trigger_configure, node.trigger_activate, node.trigger_deactivate,
        node.trigger_cleanup, node.trigger_configure, node.trigger_shutdown)]
    assert told == [SUCCESS] * 6
    assert [state for state, _ in node.reports] == [
        'inactive', 'active', 'inactive', 'unconfigured', 'inactive', 'finalized']


@pytest.mark.parametrize('error, words', [
    (SpecError('model x refused'), 'model x refused'),
    (ZeroDivisionError('by\nzero'), 'configure failed: ZeroDivisionError: by zero')])
def test_a_hook_that_raises_makes_the_transition_fail_with_its_reason(node, error, words):
    node.raises['configure'] = error
    assert node.trigger_configure() == FAILURE
    assert node.reports == [('unconfigured', words)]
    node.raises.clear()
    assert node.trigger_configure() == SUCCESS
    assert node.reports[-1] == ('inactive', '')


def test_a_deactivation_that_raises_does_not_leave_it_active(node):
    node.start()
    node.raises = {'deactivate': RuntimeError('stuck'), 'shutdown': RuntimeError('too')}
    assert node.trigger_deactivate() == ERROR
    assert node.done == ['configure', 'activate', 'deactivate', 'shutdown']
    assert node.lifecycle == 'unconfigured'
    node.raises.clear()
    assert node.trigger_configure() == SUCCESS


def test_a_start_that_is_not_possible_says_why(node):
    node.raises['activate'] = SpecError('no robot')
    with pytest.raises(SpecError, match='no robot'):
        node.start()
    assert node.lifecycle == 'inactive'


@pytest.mark.parametrize('number, words', [
    (Transition.TRANSITION_ACTIVATE, 'activate must come from inactive, got unconfigured'),
    (77, 'Transition is not registered')])
def test_a_request_that_does_not_fit_is_refused(node, number, words, capfd):
    request = ChangeState.Request()
    request.transition.id = number
    response = node._service_change_state.callback(request, ChangeState.Response())
    assert not response.success
    told = capfd.readouterr()
    assert 'transition refused: ' in told.out + told.err and words in told.out + told.err
    assert node.trigger_configure() == SUCCESS
