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

"""Tests of parameters from a table, as the command line gives them."""

import re

import pytest
import rclpy
from rclpy.node import Node

from dpg_robot.contract.strict import SpecError
from dpg_robot.nodes.common import declare_parameters, Parameter, run

TABLE = (Parameter('words', [''], 'some words'), Parameter('limit', 1.0, 'a limit', 0.5, 2.0))


@pytest.fixture
def declared():
    """Return what tells the values of the table for some arguments."""
    nodes = []

    def declare(*arguments):
        rclpy.init()
        nodes.append(Node('talker', cli_args=['--ros-args', *arguments]))
        return declare_parameters(nodes[0], TABLE)
    yield declare
    nodes[0].destroy_node()
    rclpy.try_shutdown()


@pytest.mark.parametrize('arguments, words', [
    ((), ['']),
    (('-p', 'words:=[a, b]'), ['a', 'b']),
    (('-p', 'words:=[]'), [''])])  # an empty list has no type in ROS
def test_a_list(declared, arguments, words):
    assert declared(*arguments) == {'words': words, 'limit': 1.0}


def test_what_is_no_parameter_is_told(declared, capfd):
    assert declared('-p', 'limits:=2.0', '-p', 'use_sim_time:=false')['limit'] == 1.0
    told = capfd.readouterr()
    assert (told.out + told.err).count('there is no parameter') == 1
    assert 'there is no parameter limits: it is ignored' in told.out + told.err


@pytest.mark.parametrize('arguments', [
    ['limit:=2.0'], ['--model', 'new.onnx'], ['new.onnx', '--ros-args', '-p', 'limit:=2.0']])
def test_arguments_that_ros_does_not_take_end_it_at_once(arguments, capsys):
    def make_node(stop):
        raise AssertionError('not with these arguments')
    assert run(make_node, arguments) == 2
    assert re.fullmatch('make_node: arguments must follow --ros-args, as in --ros-args -p '
                        r'NAME:=VALUE; got (limit:=2\.0|(--model )?new\.onnx)\n',
                        capsys.readouterr().err)


@pytest.mark.parametrize('argument, words', [
    ('limit:=3.0', r'^parameter limit must be from 0\.5 to 2\.0, got 3\.0$'),
    ('limit:=high', '^parameter limit must be a number with a point, such as 1.0, got high$'),
    ('limit:=1', '^parameter limit must be a number with a point, such as 1.0, got 1$'),
    ('words:=1', '^parameter words must be a list of texts, got 1$')])
def test_what_does_not_fit_is_named(declared, argument, words):
    with pytest.raises(SpecError, match=words):
        declared('-p', argument)
