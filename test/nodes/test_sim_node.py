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

"""Tests of sim_node as a process, with the real fetch_reach, over real topics."""

import signal
import threading
import time

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
import numpy as np
from policy_files import write_model
import pytest
import rclpy
from ros_harness import values
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from dpg_robot.nodes.sim_node import SimNode
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.sim.noise import NoiseConfig
from dpg_robot.sim.world import make_world, WorldConfig

STATUS = 'sim_node: world'
# Eight times the distance to the goal, as a velocity.
GAIN = 8.0
WEIGHTS = GAIN * np.vstack([-np.eye(3), np.zeros((3, 3)), np.eye(3)])


def stamp_s(message):
    """Return the stamp in a message's header [s]."""
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    spec = make_world(WorldConfig('fetch_reach')).policy_spec
    return write_model(tmp_path_factory.mktemp('models') / 'reach.onnx', spec, WEIGHTS)


@pytest.fixture(scope='module')
def sim(ros):
    """Return the running node's process; its topics lie in /sim."""
    process = ros.start('sim_node', ['-r', '__ns:=/sim'], diagnostics_period_s=0.2, hold_s=0.12)
    yield process
    assert ros.stop(process) == 0
    assert 'Traceback' not in process.log.read_text()


@pytest.fixture(scope='module')
def arm(ros, sim):
    """Return a function that sends a command."""
    publisher = ros.node.create_publisher(TwistStamped, '/sim/end_effector/command', 1)
    ros.wait(lambda: publisher.get_subscription_count() == 1)

    def send(x, y=0.0, z=0.0):
        message = TwistStamped()
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = x, y, z
        publisher.publish(message)
    return send


def told(ros, matches=lambda status: True):
    return ros.status(f'sim/{STATUS}', matches)


def drive(ros, send, until, x=0.3):
    """Send commands at about 50 Hz until a condition holds."""
    def step():
        send(x)
        time.sleep(0.02)
        return until()
    return ros.wait(step)


def test_the_state_is_published_while_it_waits(ros, sim):
    poses = ros.listen(PoseStamped, '/sim/end_effector/pose')
    goals = ros.listen(PoseStamped, '/sim/goal/pose')
    twists = ros.listen(TwistStamped, '/sim/end_effector/twist')
    ros.wait(lambda: len(poses) > 3 and len(goals) > 3 and len(twists) > 3)
    first = len(poses)
    ros.wait(lambda: len(poses) >= first + 30)
    # The median, for the machine may pause now and then.
    periods = np.diff([stamp_s(pose) for _, pose in poses[first:]])
    assert np.median(periods) == pytest.approx(0.04, rel=0.05)
    pose = poses[-1][1]
    assert pose.header.frame_id == 'world'
    assert pose.pose.orientation.w == 1.0
    assert abs(time.time() - stamp_s(pose)) < 1.0
    assert len({message.pose.position.x for _, message in poses}) == 1
    status = told(ros)
    assert status.level == DiagnosticStatus.WARN
    assert status.message == 'waiting for a command'
    assert values(status)['steps'] == '0'


def test_it_obeys_then_holds_then_is_safe(ros, arm):
    poses = ros.listen(PoseStamped, '/sim/end_effector/pose')
    first = len(ros.diagnostics)
    drive(ros, arm, lambda: len(poses) > 8 and
          poses[-1][1].pose.position.x > poses[0][1].pose.position.x + 0.02)
    status = ros.wait(lambda: next((
        status for status in ros.diagnostics[first:]
        if status.name == f'sim/{STATUS}' and values(status)['state'] == 'safe'), None))
    assert status.level == DiagnosticStatus.WARN
    assert status.message == 'commands stopped: the safe one acts'
    steps = int(values(told(ros))['steps'])
    ros.wait(lambda: int(values(told(ros))['steps']) > steps)  # the world goes on


@pytest.mark.parametrize('x, words', [(float('nan'), 'nan'), (float('-inf'), '-inf')])
def test_a_bad_command_is_ignored_and_named(ros, arm, x, words):
    before = int(values(told(ros))['bad_commands'])
    arm(x)
    status = told(ros, lambda status: 'ignored' in status.message)
    assert status.level == DiagnosticStatus.WARN
    assert 'ignored a command on end_effector/command' in status.message
    assert words in status.message
    assert int(values(status)['bad_commands']) == before + 1


def test_reset_by_service(ros, arm):
    goals = ros.listen(PoseStamped, '/sim/goal/pose')
    told(ros, lambda s: values(s)['state'] == 'waiting')  # only a reset brings a new goal now
    ros.wait(lambda: goals)
    before = goals[-1][1].pose.position.x
    answer, _ = ros.call(Trigger, '/sim/sim_node/reset', Trigger.Request())
    assert answer.success
    ros.wait(lambda: goals[-1][1].pose.position.x != before, what='a new goal')
    assert told(ros, lambda s: values(s)['state'] == 'waiting')


def test_one_command_is_held_for_so_long(ros, arm):
    late = int(values(told(ros, lambda s: values(s)['state'] == 'waiting'))['late_commands'])
    arm(0.3)
    status = told(ros, lambda s: values(s)['state'] == 'safe')
    assert int(values(status)['late_commands']) - late == 3  # 0.12 s at 25 Hz


def in_process_returns(model, seed, episodes):
    """Return what the same policy gets without topics."""
    policy = OnnxPolicy(model)
    world = make_world(WorldConfig('fetch_reach', noise=NoiseConfig(actuator=0.3)))
    scale = np.array(policy.spec.action[0].scale)
    limits = np.array(policy.spec.action[0].upper)
    returns, obs = [], world.reset(seed=seed)[0]
    for _ in range(episodes):
        total, done = 0.0, False
        while not done:
            action = np.clip(policy(obs.astype(np.float32)).astype(float), -limits, limits)
            obs, reward, terminated, truncated, _ = world.step(action / scale)
            total, done = total + reward, terminated or truncated
        returns.append(total)
        obs = world.reset()[0]
    return returns


def test_episodes_over_topics_are_those_in_process(ros, model):
    """Same seed, same policy, same returns: no command may come a period late."""
    expected = in_process_returns(model, seed=11, episodes=2)
    for attempt in range(3):  # a busy machine may delay a message; the counters must show it
        names = ['-r', f'__ns:=/pair{attempt}']
        robot = ros.start('sim_node', names, seed=11, episodes=2, actuator_noise=0.3,
                          diagnostics_period_s=0.2)
        brain = ros.start('policy_node', names, model=model, diagnostics_period_s=0.2,
                          blend_s=0.0)
        name = f'pair{attempt}/{STATUS}'
        status = ros.status(name, lambda s: values(s)['state'] == 'ended', timeout=30.0)
        late = ros.episodes(f'/pair{attempt}/sim_node/episode')  # joins when all is over
        ros.wait(lambda: len(late) == 2, what='two results')
        results = [values(message) for _, message in late]
        assert [result['episode'] for result in results] == ['1', '2']
        assert [result['success'] for result in results] == ['1', '1']
        assert [result['length'] for result in results] == ['50', '50']
        assert values(status)['successes'] == '2'
        reports = [values(s) for s in ros.diagnostics
                   if s.name == f'pair{attempt}/policy_node: control']
        assert ros.stop(brain) == 0 and ros.stop(robot) == 0
        returns = [float(result['return']) for result in results]
        if returns == pytest.approx(expected, abs=2e-4):
            break
        seen, told = values(status), reports[-1]
        assert int(seen['late_commands']) or int(told['repeated_states'])
    assert returns == pytest.approx(expected, abs=2e-4)


def test_a_goal_is_published_before_the_state_that_a_policy_waits_for():
    rclpy.init(args=['--ros-args', '-p', 'config:=fetch_reach'])
    try:
        node = SimNode(threading.Event())
        assert list(node._state_publishers)[0] == 'goal/pose'
        node.destroy_node()
    finally:
        rclpy.shutdown()


def test_observation_noise_is_on_the_topics_named(ros):
    poses = ros.listen(PoseStamped, '/hazy/end_effector/pose')
    goals = ros.listen(PoseStamped, '/hazy/goal/pose')
    process = ros.start('sim_node', ['-r', '__ns:=/hazy'], wait_for_command=False, speed=4.0,
                        observation_noise="['end_effector_position=0.005']")
    ros.wait(lambda: len(poses) >= 45 and len(goals) >= 45)
    assert ros.stop(process) == 0
    # Without commands the gripper rests; only the actuator noise moves it, slowly.
    steps = np.diff([message.pose.position.x for _, message in poses[:45]])
    assert 0.003 < steps.std() / np.sqrt(2) < 0.02
    # The goal has no noise; it changes with an episode, of 50 steps, only.
    assert len({message.pose.position.x for _, message in goals[:45]}) <= 2


def test_the_policy_goes_safe_when_the_robot_dies(ros, model):
    names = ['-r', '__ns:=/victim']
    robot = ros.start('sim_node', names)
    brain = ros.start('policy_node', names, model=model, diagnostics_period_s=0.2)
    commands = ros.listen(TwistStamped, '/victim/end_effector/command')
    ros.wait(lambda: len(commands) > 5 and commands[-1][1].twist.linear.x != 0.0)
    begin = time.time()
    robot.send_signal(signal.SIGKILL)
    robot.wait()
    ros.wait(lambda: commands[-1][1].twist.linear.x == 0.0)
    # By their stamps: whoever was killed in the midst of a delivery may hold up others' for 1 s.
    sent = [(stamp_s(message), message.twist.linear.x) for _, message in commands]
    after = next(stamp for stamp, speed in sent if stamp > begin and speed == 0.0)
    assert after - begin < 0.1 + 0.04 + 0.1  # max_age_s, a period, and a busy machine
    assert all(speed == 0.0 for stamp, speed in sent if stamp > after)
    status = ros.status('victim/policy_node: control')
    assert status.level == DiagnosticStatus.ERROR
    assert 'end_effector_position: stale' in status.message
    assert ros.stop(brain) == 0


@pytest.mark.parametrize('parameters, words', [
    ({'config': '/none/task.yaml'}, 'config file /none/task.yaml cannot be read: No such file'),
    ({'config': 'other.yaml'}, 'world.tsak is not a known key'),
    ({'config': 'model.onnx'}, 'config file model.onnx must be YAML: '),
    ({'config': 'robot.yaml'}, 'config file robot.yaml must have a section world, got learner'),
    ({'observation_noise': "['gripper=0.1']"},
     'noise.observation.gripper is not an observation term'),
    ({'observation_noise': "['goal=-0.1']"}, 'noise.observation.goal must be at least 0'),
    ({'observation_noise': "['goal']"},
     "parameter observation_noise must hold entries TERM=NUMBER, got 'goal'"),
    ({'speed': 0.0}, 'parameter speed must be from 0.1 to 20.0, got 0.0')])
def test_a_startup_error_is_one_line(ros, parameters, words):
    (ros.folder / 'other.yaml').write_text('world:\n  tsak: fetch_reach\n')
    (ros.folder / 'robot.yaml').write_text('learner: {}\n')
    (ros.folder / 'model.onnx').write_bytes(b'\x08\x89\xff')
    process = ros.start('sim_node', **parameters)
    assert process.wait(timeout=30) == 2
    lines = [line for line in process.log.read_text().splitlines() if 'sim_node: ' in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert 'Traceback' not in process.log.read_text()


def test_a_task_without_success_reports_none(ros, tmp_path):
    task = tmp_path / 'hopper.yaml'
    task.write_text('world: {task: hopper, noise: {actuator: 0.2}}')
    results = ros.episodes('/hop/sim_node/episode')
    robot = ros.start('sim_node', ['-r', '__ns:=/hop'], config=task, wait_for_command=False,
                      episodes=1, diagnostics_period_s=0.2)
    _, message = ros.wait(lambda: results, what='a fall', timeout=20.0)[0]
    assert message.message == 'ended'
    assert values(message).keys() == {'episode', 'return', 'length'}
    assert ros.stop(robot) == 0


def test_a_packaged_task_by_its_name_with_a_robot_from_a_file(ros):
    states = ros.listen(JointState, '/six/joint_states')
    robot = ros.start('sim_node', ['-r', '__ns:=/six'], config='six_axis_reach')
    _, message = ros.wait(lambda: states, what='joints', timeout=20.0)[0]
    assert list(message.name) == ['base_yaw', 'shoulder_pitch', 'elbow_pitch', 'forearm_roll',
                                  'wrist_pitch', 'wrist_roll']
    assert len(message.position) == len(message.velocity) == 6
    assert ros.stop(robot) == 0
