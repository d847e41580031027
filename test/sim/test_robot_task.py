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

"""A robot from one YAML: models, servos, contract, both tasks, and every mistake by its name."""

import dataclasses
import itertools
from pathlib import Path
import re

from builtin_interfaces.msg import Time
import mujoco
import numpy as np
import pytest
from small_training import train
import yaml

from dpg_robot.contract.messages import message_class, MessageWriter
from dpg_robot.contract.observation import ObservationAssembler
from dpg_robot.contract.spec import PolicySpec, TrainingRecord
from dpg_robot.contract.strict import dump, load, SpecError
from dpg_robot.experiment import (
    evaluate_model,
    ExperimentConfig,
    export_run,
    load_config,
    open_trainer,
    world_of,
)
from dpg_robot.resources import share_path, task_names
from dpg_robot.runtime.onnx_policy import OnnxPolicy
from dpg_robot.sim.rate_limit import RateLimitedWorld
from dpg_robot.sim.robot_config import hash_of, RobotConfig
from dpg_robot.sim.world import make_vector, make_world

ROOT = Path(__file__).resolve().parents[2]
SIX_AXIS = [name for name in task_names() if name.startswith('six_axis')]
ARM = """
<mujoco model="two_links">
  <option timestep="0.001"/>
  <worldbody>
    <body name="upper">
      <joint name="a" axis="0 1 0" range="-170 170" actuatorfrcrange="-30 30"/>
      <inertial pos="0 0 0" mass="1" diaginertia="0.1 0.1 0.1"/>
      <body name="lower" pos="0.4 0 0">
        <joint name="b" axis="0 1 0" range="-100 100" damping="0.2"/>
        <inertial pos="0.2 0 0" mass="0.5" diaginertia="0.02 0.02 0.02"/>
        <site name="tip" pos="0.3 0 0"/>
        <body name="finger" pos="0.3 0 0">
          <joint name="grip" type="slide" range="0 0.05"/>
          <inertial pos="0 0 0" mass="0.01" diaginertia="1e-4 1e-4 1e-4"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor name="old" joint="a" gear="7"/>
    <position name="hand" joint="grip" kp="10"/>
  </actuator>
</mujoco>
"""
URDF = """
<robot name="urdf_arm">
  <link name="base"/>
  <link name="beam">
    <inertial><origin xyz="0.2 0 0"/><mass value="1"/>
      <inertia ixx="0.01" iyy="0.02" izz="0.02" ixy="0" ixz="0" iyz="0"/></inertial>
    <visual><geometry><mesh filename="package://arm/beam.dae"/></geometry></visual>
    <collision><geometry><mesh filename="package://arm/beam.dae"/></geometry></collision>
  </link>
  <link name="tool0"/>
  <joint name="pitch" type="revolute"><parent link="base"/><child link="beam"/>
    <axis xyz="0 1 0"/><limit lower="-1" upper="1.5" effort="20" velocity="2"/></joint>
  <joint name="mount" type="fixed"><parent link="beam"/><child link="tool0"/>
    <origin xyz="0.4 0 0"/></joint>
</robot>
"""
ROBOT = {'model': 'arm.xml', 'joints': ['a', 'b'], 'end_effector': 'tip', 'control': 'velocity',
         'control_rate_hz': 50, 'velocity_limit': [2.0], 'home': [-0.5, 1.0], 'home_spread': 0.0,
         'goal': {'lower': [0.45, 0, 0.0], 'upper': [0.6, 0, 0.2], 'tolerance': 0.05}}
REFERENCE = {'amplitude': [0.5, 0.4], 'max_frequency_hz': 0.5}


def write(folder, task='reach', drop=(), noise=None, reward='dense', **changes):
    """Write a task file and its model, and return the file's path."""
    folder.mkdir(exist_ok=True)
    (folder / 'arm.xml').write_text(ARM)
    (folder / 'arm.urdf').write_text(URDF)
    (folder / 'page.xml').write_text('<html/>')
    (folder / 'broken.xml').write_text('<mujoco><joint/></mujoco>')
    robot = {key: value for key, value in {**ROBOT, **changes}.items() if key not in drop}
    path = folder / 'task.yaml'
    path.write_text(yaml.safe_dump({'world': {
        'task': task, 'reward': reward, 'robot': robot, 'noise': noise or {}}}))
    return path


def world(folder, *args, **options):
    """Return the world of such a file."""
    return make_world(load_config(write(folder, *args, **options)).world)


@pytest.mark.parametrize('changes, message', [
    ({'model': 'no.xml'}, 'model must be an MJCF or URDF file, found none at FOLDER/no.xml'),
    ({'model': 'package://nowhere/arm.xml'}, 'model must be in a ROS package that is installed in '
     'a sourced workspace, got package://nowhere/arm.xml'),
    *(({'model': name}, 'model must be an MJCF or URDF file that MuJoCo takes, got '
       f'FOLDER/{name}: {why}') for name, why in (
           ('task.yaml', 'syntax error: line 1'),
           ('page.xml', 'it begins with <html>, not with <mujoco> or <robot>'),
           ('broken.xml', 'XML Error: '))),
    ({'model': 3}, 'model must be a string, got 3'),
    ({'speed': 3}, 'speed is not a known key; known keys: model, joints, control'),
    ({'joints': []}, 'joints must name at least one joint, got none'),
    ({'joints': ['a', 'a']}, 'joints must differ, got a twice'),
    *(({'joints': ['a', name]}, 'joints[1] must be a name without brackets, and no number, to be '
       f'found by in a JointState, got {name!r}') for name in ('1', 'b[0]', '')),
    ({'joints': ['a', 'elbow']},
     'joints[1] must be a joint of the model (a, b, grip), got elbow'),
    ({'joints': ['a', 'grip']}, 'joints[1] must be a hinge, got grip, a slide'),
    ({'control': 'impedance'}, 'control must be one of position, velocity, torque; got impedance'),
    ({'control_rate_hz': 0}, 'control_rate_hz must be greater than 0, got 0.0'),
    ({'control_rate_hz': 30}, 'control_rate_hz must give a control period of whole physics steps '
     '(0.001 s each: world.robot.sim_dt), got 30, 33.3333 steps'),
    ({'end_effector': 'gripper'}, 'end_effector must be a site or body of the model '
     '(tip, world, upper, lower, finger), got gripper'),
    ({'end_effector': ''}, 'end_effector is required for the task reach, and missing'),
    ({'velocity_limit': [90, 90]},
     'velocity_limit[0] must be in rad/s and at most 30, got 90.0'),
    ({'velocity_limit': [1, 1, 1]},
     'velocity_limit must have one value, or one for each joint (2), got 3'),
    ({'velocity_limit': []},
     'velocity_limit is required with velocity control: the model has none for joint a'),
    ({'velocity_limit': 2.0}, 'velocity_limit must be a list, got 2.0'),
    ({'control': 'torque'},
     'torque_limit is required with torque control: the model has none for joint b'),
    ({'home': [-30.0, 60.0]},
     'home[0] must be in rad and within the limits of a (-2.96706 to 2.96706), got -30'),
    ({'position_upper': [3.5, 1.0]}, 'position_upper[0] must be in rad and within the limits of a '
     '(-2.96706 to 2.96706), got 3.5'),
    ({'position_lower': [1.0], 'position_upper': [0.5]},
     'position_lower[0] must be below position_upper[0] (0.5), or both left out, got 1'),
    ({'home_spread': 10}, 'home_spread must be at most 3.1416, got 10.0'),
    ({'kp': [10.0]}, 'kp means nothing with velocity control, got [10.0]'),
    ({'acceleration_limit': [5.0], 'control': 'position'},
     'acceleration_limit means nothing with position control, got [5.0]'),
    *(({key: [0.5] * 3, 'control': 'position'},
       f'{key} must have one value, or one for each joint (2), got 3') for key in (
           'home', 'position_lower', 'position_upper', 'torque_limit', 'kp', 'kv')),
    ({'acceleration_limit': [5.0] * 3}, 'acceleration_limit must have one value, or one for each '
     'joint (2), got 3'),
    ({'goal': None}, 'goal is required for the task reach, and missing'),
    ({'goal': {'lower': [0, 0], 'upper': [1, 1, 1]}},
     'goal.lower must be x, y and z, got 2 values'),
    ({'goal': {'lower': [0.3, 0, 0], 'upper': [0.2, 0, 0]}},
     'goal.lower[0] must be at most upper[0] (0.2), or the region is empty; got 0.3'),
    ({'goal': {'lower': [0.5, 0, 0], 'upper': [0.5, 0.3, 0]}},
     'goal must be in m and within reach of the end effector, got a corner [0.5, 0.3, 0.0] that '
     'it misses by 0.3 m (tolerance 0.03 m)'),
    ({'goal': {'lower': [300, 0, 0], 'upper': [400, 0, 300], 'tolerance': 0.05}},
     'goal must be in m and within reach of the end effector, got a corner [300.0, 0.0, 0.0]'),
    ({'goal': {'lower': [0, 0, 0], 'upper': [0, 0, 0], 'tolerance': 30}},
     'goal.tolerance must be at most 1.0, got 30.0'),
], ids=str)
def test_bad_robot(tmp_path, changes, message):
    with pytest.raises(SpecError) as caught:
        world(tmp_path, **changes)
    message = message.replace('FOLDER', str(tmp_path))
    assert str(caught.value).startswith(f'world.robot.{message}')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('reference, message', [
    (None, ' is required for the task track, and missing'),
    ({'amplitude': [0.5, 0.8], 'max_frequency_hz': 0.1}, '.amplitude must be at most 0.7453 rad '
     'for joint b, the room between home and the limits, got 0.8'),
    ({'amplitude': [0.5], 'max_frequency_hz': 2}, '.amplitude must be at most 0.1592 rad for '
     'joint a, velocity_limit / (2 pi max_frequency_hz), got 0.5'),
    ({'amplitude': []}, '.amplitude must have one value, or one for each joint, got none'),
    ({'amplitude': [0.5, 0.5, 0.5]},
     '.amplitude must have one value, or one for each joint (2), got 3')])
def test_bad_reference(tmp_path, reference, message):
    with pytest.raises(SpecError) as caught:
        world(tmp_path, 'track', reference=reference)
    assert str(caught.value) == f'world.robot.reference{message}'


def test_a_slow_robot_has_a_contract_that_a_robot_takes(tmp_path):
    spec = world(tmp_path, control_rate_hz=0.5).policy_spec
    assert [term.max_age_s for term in spec.observation] == [5.0] * 4
    assert PolicySpec.from_json(spec.to_json()) == spec


def test_robots_where_they_belong(tmp_path):
    path = tmp_path / 'task.yaml'
    path.write_text('world: {task: reach}')
    with pytest.raises(SpecError, match='^world.robot is required for the task reach, and '
                       'missing$'):
        load_config(path)
    write(tmp_path, 'fetch_reach')
    with pytest.raises(SpecError, match='^world.robot must be left out for fetch_reach, a task '
                       'with a robot of its own, got .*/arm.xml$'):
        load_config(path)
    with pytest.raises(SpecError, match='^world.reward must be dense for track, got sparse$'):
        load_config(write(tmp_path, 'track', reward='sparse', reference=REFERENCE))


def servo(task, joint):
    return task.sim.model.actuator(f'dpg_robot/{joint}')


def test_old_actuators_of_the_joints_go_and_others_stay(tmp_path, monkeypatch):
    names = ['hand', 'dpg_robot/a', 'dpg_robot/b']
    model = world(tmp_path).env.sim.model
    assert [model.actuator(i).name for i in range(model.nu)] == names

    # So do sensors on them and keyframes; defaults are not taken over.
    monkeypatch.setitem(globals(), 'ARM', ARM.replace('<worldbody>', """
      <default><general gear="50" forcerange="-1 1" ctrlrange="-3 3"/></default>
      <worldbody>""").replace('</mujoco>', """
      <keyframe><key name="start" qpos="0.1 0.2 0" ctrl="1 2"/></keyframe>
      <sensor><actuatorfrc actuator="old"/><jointpos name="kept" joint="a"/></sensor></mujoco>"""))
    model = world(tmp_path / 'more').env.sim.model
    assert [model.actuator(i).name for i in range(model.nu)] == names
    assert [model.sensor(i).name for i in range(model.nsensor)] == ['kept']
    servos = [model.actuator(name) for name in names[1:]]
    assert [each.gear[0] for each in servos] == [1.0, 1.0]
    assert [each.ctrlrange.tolist() for each in servos] == [[-2.0, 2.0]] * 2
    assert [each.forcelimited[0] for each in servos] == [1, 0]


@pytest.mark.parametrize('control', ['position', 'velocity', 'torque'])
@pytest.mark.parametrize('default', [
    '<position kp="20" timeconst="0.1"/>', '<general dyntype="filter" dynprm="0.5"/>',
    '<general delay="0.01" nsample="3"/>', '<general damping="3" armature="2"/>', '<muscle/>',
    '<general biastype="affine" biasprm="1 2 3"/>'], ids=str)
def test_servos_are_not_what_the_models_defaults_say(tmp_path, monkeypatch, control, default):
    def servos():
        model = world(tmp_path, control=control, torque_limit=[3.0]).env.sim.model
        return {name: getattr(model, name)[1:].tolist() for name in dir(model) if re.match(
            'actuator_(dyn|gain|bias|actnum|actlim|delay|history$|damp|arma|force|ctrl)', name)}
    plain = servos()
    monkeypatch.setitem(globals(), 'ARM', ARM.replace(
        '<worldbody>', f'<default>{default}</default><worldbody>'))
    assert servos() == plain and len(plain) > 10


@pytest.mark.parametrize('control', ['position', 'velocity', 'torque'])
def test_a_normalised_action_is_a_command_in_physical_units(tmp_path, control):
    task = world(tmp_path, control=control, torque_limit=[3.0, 2.0]).env
    task.reset(seed=0)
    term, = task.policy_spec.action
    ends = {'position': np.deg2rad([[-170, -100], [170, 100]]),
            'velocity': np.array([[-2.0, -2.0], [2.0, 2.0]]),
            'torque': np.array([[-3.0, -2.0], [3.0, 2.0]])}[control]
    np.testing.assert_allclose((term.lower, term.upper), ends, atol=1e-9)
    for action, command in ((-1, ends[0]), (1, ends[1]), (0, ends.mean(0))):
        task.step(np.full(2, action))
        np.testing.assert_allclose(task.sim.data.ctrl[1:], command, atol=1e-8)
    assert term.safe == {'position': (None, None)}.get(control, (0.0, 0.0))
    assert term.rate_limit == {'position': (2.0, 2.0)}.get(control, (None, None))


def test_torque_is_torque_on_the_joint_that_is_named(tmp_path):
    task = world(tmp_path, control='torque', torque_limit=[3.0, 2.0]).env
    task.reset(seed=0)
    task.step(np.array([0.5, -0.25]))
    assert task.sim.data.joint('a').qfrc_actuator[0] == pytest.approx(1.5)
    assert task.sim.data.joint('b').qfrc_actuator[0] == pytest.approx(-0.5)


def one_joint(folder, **changes):
    """Return a task of the outer joint alone, of inertia 0.02 + 0.5 0.2^2 + 0.01 0.3^2 + 1e-4."""
    return world(folder, joints=['b'], home=[1.0], goal={
        'lower': [0.4, 0, 0], 'upper': [0.4, 0, 0], 'tolerance': 1.0}, **changes).env


def test_a_position_servo_is_critically_damped_at_its_bandwidth(tmp_path):
    task = one_joint(tmp_path, control='position', bandwidth_hz=2.0, velocity_limit=[30.0],
                     sim_dt=0.0002)
    actuator, omega, inertia = servo(task, 'b'), 4 * np.pi, 0.041
    assert actuator.gainprm[0] == pytest.approx(inertia * omega**2, rel=1e-3)
    # The servo and the joint's own damping together.
    assert 0.2 - actuator.biasprm[2] == pytest.approx(2 * inertia * omega, rel=1e-3)

    # The upper arm swings in reaction: hold it.
    model = task.sim.model
    model.dof_armature[0] = 1e6
    task.reset(seed=0)
    low, high = np.deg2rad([-100, 100])
    target = 1.2
    for _ in range(10):
        task.step(np.array([(2 * target - low - high) / (high - low)]))
    phase = omega * 10 / 50
    expected = target - 0.2 * (1 + phase) * np.exp(-phase)
    assert task.sim.joint_position[0] == pytest.approx(expected, abs=1e-3)


def test_a_velocity_servo_reaches_its_velocity_though_the_joint_is_damped(tmp_path):
    task = one_joint(tmp_path, bandwidth_hz=5.0)
    task.sim.model.dof_armature[0] = 1e6
    task.reset(seed=0)
    for _ in range(15):
        task.step(np.array([-0.4]))
    assert task.sim.joint_velocity[0] == pytest.approx(-0.8, abs=1e-3)


def test_given_gains_are_taken(tmp_path):
    task = world(tmp_path, control='position', kp=[11.0, 12.0], kv=[3.0]).env
    assert [servo(task, j).gainprm[0] for j in 'ab'] == [11.0, 12.0]
    assert [servo(task, j).biasprm[2] for j in 'ab'] == [-3.0, -3.0]


def test_drives_give_no_more_than_their_torque(tmp_path):
    task = world(tmp_path, control='position', kp=[1e4], torque_limit=[4.0, 2.0]).env
    task.reset(seed=0)
    task.step(np.ones(2))
    assert [task.sim.data.joint(j).qfrc_actuator[0] for j in 'ab'] == [4.0, 2.0]
    model = world(tmp_path, control='position', kp=[1e4]).env
    assert servo(model, 'a').forcerange.tolist() == [-30.0, 30.0]  # the model file's


@pytest.mark.parametrize('compensated', [True, False])
def test_the_weight_is_carried_if_it_shall_be(tmp_path, compensated):
    task = world(tmp_path, control='torque', torque_limit=[3.0], home=[0.0, 0.0],
                 gravity_compensation=compensated).env
    task.reset(seed=0)
    for _ in range(10):
        task.step(np.zeros(2))
    assert (np.abs(task.sim.joint_position).max() < 1e-9) == compensated


def test_narrower_limits_stop_the_joint(tmp_path):
    task = world(tmp_path, position_upper=[2.0, 1.2]).env
    task.reset(seed=0)
    for _ in range(50):
        task.step(np.array([0.0, 1.0]))
    assert task.sim.joint_position[1] == pytest.approx(1.2, abs=0.02)


def test_the_end_effector_is_where_kinematics_put_it(tmp_path):
    task = world(tmp_path).env
    task.reset(seed=0)
    for _ in range(3):
        obs, *_ = task.step(np.array([0.3, -0.9]))
    a, b = obs[0], obs[0] + obs[1]
    tip = [0.4 * np.cos(a) + 0.3 * np.cos(b), 0, -0.4 * np.sin(a) - 0.3 * np.sin(b)]
    np.testing.assert_allclose(obs[4:7], tip, atol=1e-12)
    np.testing.assert_array_equal(obs[7:], task.sim.goal)


def test_a_site_may_lie_in_a_frame(tmp_path):
    path = write(tmp_path)
    site = '<site name="tip" pos="0.3 0 0"/>'
    assert ARM.count(site) == 1
    (tmp_path / 'arm.xml').write_text(ARM.replace(
        site, f'<frame pos="0 0 0.1" euler="0 90 0">{site}</frame>'))
    sim = make_world(load_config(path).world).env.sim
    sim.data.qpos[:2] = 0.3, -0.7
    mujoco.mj_kinematics(sim.model, sim.data)
    np.testing.assert_allclose(sim.end_effector, sim.data.site('tip').xpos, atol=1e-9)
    assert abs(sim.end_effector[2] - sim.data.body('lower').xpos[2]) > 0.05


@pytest.mark.parametrize('place', [
    'fromto="0.1 0 0 0.3 0 0.2"', 'pos="0.2 0 0.1"', 'class="there"'])
@pytest.mark.parametrize('fuses', ['true', 'false'])
def test_a_site_may_be_placed_in_any_way(tmp_path, place, fuses):
    path = write(tmp_path, end_effector='elsewhere', goal={
        'lower': [0.45, 0, 0.0], 'upper': [0.6, 0, 0.2], 'tolerance': 0.3})
    arm = ARM.replace('<worldbody>', f"""<compiler fusestatic="{fuses}"/>
        <default><default class="there"><site pos="0.2 0 0.1"/></default></default>
        <worldbody>""")
    at = arm.index('</body>')  # of the innermost one, which does not move in its parent
    (tmp_path / 'arm.xml').write_text(
        f'{arm[:at]}<body name="plate" pos="0 0.1 0">'
        f'<site name="elsewhere" type="capsule" size="0.01" {place}/></body>{arm[at:]}')
    sim = make_world(load_config(path).world).env.sim
    mujoco.mj_forward(sim.model, sim.data)
    np.testing.assert_allclose(sim.end_effector, sim.data.site('elsewhere').xpos, atol=1e-9)
    assert np.abs(sim.model.site('elsewhere').pos).max() > 0.1


def test_a_body_may_be_the_end_effector(tmp_path):
    task = world(tmp_path, end_effector='finger').env
    task.reset(seed=0)
    np.testing.assert_allclose(task.sim.end_effector, task.sim.data.body('finger').xpos)


def test_goals_fill_their_region(tmp_path):
    task = world(tmp_path).env
    goals = np.array([task.reset(seed=0 if i == 0 else None)[0][7:] for i in range(200)])
    lower, upper = (np.array(ROBOT['goal'][key]) for key in ('lower', 'upper'))
    assert (goals >= lower).all() and (goals <= upper).all()
    width = upper - lower
    # Of 200 uniform draws one is within 5 % of each end, but for one in 30,000 sets of draws.
    assert (goals.min(0) <= lower + 0.05 * width).all()
    assert (goals.max(0) >= upper - 0.05 * width).all()


@pytest.mark.parametrize('reward', ['dense', 'sparse'])
def test_reward_and_success_are_of_the_distance(tmp_path, reward):
    task = world(tmp_path, reward=reward).env
    task.reset(seed=0)
    state = task.state
    tip = task.step(np.zeros(2))[0][4:7]
    for distance in (0.049, 0.051):
        task.state = {**state, 'goal': tip + [0, 0, distance]}
        obs, got, terminated, _, info = task.step(np.zeros(2))
        near = distance < 0.05
        assert info['is_success'] is near and not terminated
        assert got == pytest.approx(-distance if reward == 'dense' else near - 1.0)
        rewards, successes = task.goal_reward(obs[None, 4:7], obs[None, 7:])
        assert (rewards[0], successes[0]) == (got, near)
    assert task.achieved_goal_terms == ('end_effector_position',)


def test_references_are_smooth_and_within_limits(tmp_path):
    task = world(tmp_path, 'track', reference=REFERENCE, control_rate_hz=1000).env
    for seed in range(5):
        obs, _ = task.reset(seed=seed)
        np.testing.assert_array_equal(obs[:2], obs[4:6])  # it begins on its reference
        seen = np.array([task.step(np.zeros(2))[0][4:] for _ in range(40)])
        speed = np.diff(seen[:, :2], axis=0) * 1000
        np.testing.assert_allclose(speed, (seen[1:, 2:] + seen[:-1, 2:]) / 2, atol=1e-4)
        amplitude, omega, _ = task.sim.goal
        np.testing.assert_allclose(amplitude.sum(0), REFERENCE['amplitude'])
        assert (np.abs(omega) <= np.pi).all()
        assert ((amplitude * omega).sum(0) <= 2.0).all()


def test_tracking_is_paid_by_the_error(tmp_path):
    task = world(tmp_path, 'track', reference=REFERENCE).env
    task.reset(seed=0)
    obs, reward, _, _, info = task.step(np.array([0.7, -0.2]))
    errors = obs[:2] - obs[4:6]
    assert reward == pytest.approx(-np.sqrt((errors[0]**2 + errors[1]**2) / 2))
    assert reward < 0 and 'is_success' not in info


def test_commands_move_no_faster_than_the_velocity_limit(tmp_path):
    limited = world(tmp_path, control='position', noise={'actuator': 0.1})
    assert isinstance(limited, RateLimitedWorld)
    spec, step = limited.policy_spec, 2.0 / 50
    drawn = np.random.default_rng(0).uniform(-1, 1, (20, 2))

    def run(actions):
        limited.reset(seed=3)
        start = limited.env.held_position.copy()
        rows, told = [], []
        for action in actions:
            rows.append(limited.step(action)[0])
            told.append(limited.limiter.last.copy())
        return start, np.array(rows), np.array(told)
    start, rows, told = run(drawn)
    moves = np.abs(np.diff(np.vstack([start, told]), axis=0))
    assert moves.max() == pytest.approx(step)
    # What the node has limited already passes unchanged.
    np.testing.assert_allclose(run(spec.normalised(told))[1], rows, atol=1e-9)


@pytest.mark.parametrize('noise', [
    {'command_latency_s': 0.03}, {'command_latency_spread_s': 0.1}, {'command_jitter_s': 0.1},
    {'command_loss': 1.0}, {'backlash': 0.1}], ids=str)
def test_a_position_robot_begins_where_it_is(tmp_path, noise):
    noisy = world(tmp_path, control='position', home=[-0.5, 1.0], noise=noise)
    noisy.reset(seed=0)
    position, sim = noisy.env.held_position.copy(), noisy.env.sim
    for _ in range(4):
        noisy.step(noisy.policy_spec.normalised(position))
        np.testing.assert_allclose(sim.data.ctrl[sim.robot.ctrl], position, atol=0.003)


def test_a_payload_that_the_drives_do_not_know_of_pulls_the_arm_down(tmp_path):
    def fallen(**randomize):
        arm = world(tmp_path, control='torque', torque_limit=[9.0], home=[0.0, 0.0],
                    noise={'randomize': randomize})
        arm.reset(seed=0)
        height = arm.env.sim.end_effector[2]
        for _ in range(10):
            arm.step(np.zeros(2))
        return height - arm.env.sim.end_effector[2]
    for nominal in ({'scale': {'mass': [1.0, 1.0]}}, {'gravity_m_s2': [9.81, 9.81]}):
        assert abs(fallen(**nominal)) < 1e-9
    # At most free fall for 0.2 s, at the tip of an arm: up to 1.5 times as far.
    assert 0.02 < fallen(scale={'mass': [3.0, 3.0]}) < 0.3
    assert 0.02 < fallen(gravity_m_s2=[15.0, 15.0]) < 0.3
    assert fallen(gravity_m_s2=[5.0, 5.0]) < -0.02


def test_bodies_that_a_mistake_is_told_of_are_the_users(tmp_path):
    push = {'rate_hz': 1, 'force_n': [1, 2], 'duration_s': 0.1}
    for noise in {'pushes': {'elbow': push}}, {'randomize': {'mass_kg': {'elbow': [1, 2]}}}:
        with pytest.raises(SpecError, match=r'of reach \(upper, lower, finger\), got elbow$'):
            world(tmp_path, noise=noise)


def test_a_world_has_a_state_before_its_first_episode(tmp_path):
    limited = world(tmp_path, control='position')
    assert np.isnan(limited.state['last_command']).all()


def test_a_joint_without_limits_leaves_the_ranges_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr('test_robot_task.ARM', ARM.replace(
        'range="-170 170" actuatorfrcrange', 'actuatorfrcrange'))
    position, velocity, *_ = world(tmp_path).policy_spec.observation
    width = np.deg2rad(200)
    assert position.lower == (-1e9, pytest.approx(-0.6 * width))
    assert position.upper == (1e9, pytest.approx(0.6 * width))
    assert velocity.upper == (10.0, 10.0)


def test_a_home_in_degrees_is_told_where_a_joint_has_no_limits(tmp_path, monkeypatch):
    monkeypatch.setattr('test_robot_task.ARM', ARM.replace(
        'range="-170 170" actuatorfrcrange', 'actuatorfrcrange'))
    world(tmp_path, home=[-6.2832, 1.0])
    with pytest.raises(SpecError, match=r'^world.robot.home\[0\] must be in rad and within '
                       r'\+-6.2832 for a, which has no limits, got 90$'):
        world(tmp_path, home=[90.0, 1.0])


def test_an_action_that_is_not_finite_is_refused(tmp_path):
    limited = world(tmp_path)
    limited.reset(seed=0)
    with pytest.raises(SpecError, match=r'^an action for reach must be finite, got \[nan, 0.0\]$'):
        limited.step(np.array([np.nan, 0.0]))


def test_physics_that_diverge_are_an_error_until_the_next_episode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there
    arm = world(tmp_path)
    arm.reset(seed=0)
    arm.env.sim.data.qvel[0] = np.inf
    with pytest.raises(SpecError, match='^the simulation of reach must stay finite, but its '
                       'physics diverged: .*time step.*gains.*randomize$'):
        arm.step(np.zeros(2))
    arm.reset()
    arm.step(np.zeros(2))


def test_an_acceleration_limit_is_the_rate_limit_of_a_velocity(tmp_path):
    limited = world(tmp_path, acceleration_limit=[5.0, 10.0])
    assert limited.policy_spec.action[0].rate_limit == (5.0, 10.0)
    limited.reset(seed=0)
    executed = [limited.step(np.ones(2))[4]['executed_action'] for _ in range(3)]
    np.testing.assert_allclose(executed, [[0.05, 0.1], [0.1, 0.2], [0.15, 0.3]], atol=1e-12)


OPTIONS = {'reach': {'control': 'position', 'noise': {'actuator': 0.05}},
           'track': {'reference': REFERENCE, 'noise': {'actuator': 0.2}}}


def rollout(env, num):
    rows = []
    for i, action in enumerate(np.random.default_rng(7).uniform(-1, 1, (num, 2))):
        obs, reward, _, truncated, _ = env.step(action)
        rows.append([*obs, reward, truncated])
        if truncated or i == num // 2:
            rows.append([*env.reset()[0], 0.0, 0.0])
    return np.array(rows)


@pytest.mark.parametrize('task', OPTIONS)
def test_state_restores_to_the_bit_in_a_fresh_world(tmp_path, task):
    env, fresh = (world(tmp_path, task, **OPTIONS[task]) for _ in range(2))
    env.reset(seed=3)
    rollout(env, 13)
    state = env.state
    expected = rollout(env, 60)
    fresh.reset(seed=8)
    rollout(fresh, 9)
    for each in (fresh, env):
        each.state = state
        np.testing.assert_array_equal(rollout(each, 60), expected)


@pytest.mark.parametrize('task', OPTIONS)
def test_a_world_of_a_vector_is_the_same_as_one_alone(tmp_path, task):
    config = load_config(write(tmp_path, task, **OPTIONS[task])).world
    envs, single = make_vector(config, 2), make_world(config)
    first = envs.reset(seed=3)[0][1]
    np.testing.assert_array_equal(first, single.reset(seed=4)[0])
    for actions in np.random.default_rng(0).uniform(-1, 1, (10, 2, 2)):
        obs, reward, *_ = envs.step(actions)
        alone, alone_reward, *_ = single.step(actions[1])
        np.testing.assert_array_equal([*obs[1], reward[1]], [*alone, alone_reward])
    envs.close()


@pytest.mark.parametrize('task', OPTIONS)
def test_seeds_repeat_and_differ(tmp_path, task):
    env = world(tmp_path, task, **OPTIONS[task])
    first, again, other = ((env.reset(seed=seed), rollout(env, 5))[1] for seed in (4, 4, 5))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize('task', OPTIONS)
def test_the_contract_travels_in_messages(tmp_path, task):
    env = world(tmp_path, task, **OPTIONS[task])
    spec, (obs, _) = env.policy_spec, env.reset(seed=0)
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert (spec.task, spec.robot, spec.control_rate_hz) == (task, 'two_links', 50.0)
    assert env.observation_space.shape == obs.shape == (spec.obs_dim,)
    writer = MessageWriter(spec.observation, lambda kind: message_class(kind)(), 'world')
    assembler = ObservationAssembler(spec)
    for topic, message in writer.write(obs, Time(sec=1)):
        assembler.update(topic, message, received_s=0.0)
    read, faults = assembler.assemble(now_s=0.0)
    assert not faults
    np.testing.assert_array_equal(read, obs.astype(np.float32))


def test_a_urdf_with_meshes_and_a_fixed_tool(tmp_path):
    path = write(tmp_path, model='arm.urdf', joints=['pitch'], end_effector='tool0', home=[0.2],
                 drop=['velocity_limit'], sim_dt=0.002,
                 goal={'lower': [0.4, 0, 0], 'upper': [0.4, 0, 0]})
    task = make_world(load_config(path).world).env
    obs, _ = task.reset(seed=0)
    np.testing.assert_allclose(obs[2:5], [0.4 * np.cos(0.2), 0, -0.4 * np.sin(0.2)], atol=1e-12)
    term, = task.policy_spec.action
    assert (term.lower, term.upper, term.joints) == ((-2.0,), (2.0,), ('pitch',))
    assert servo(task, 'pitch').forcerange.tolist() == [-20.0, 20.0]
    joint = task.policy_spec.observation[0]
    assert joint.lower[0] == pytest.approx(-1.25) and joint.upper[0] == pytest.approx(1.75)
    assert task.policy_spec.robot == 'urdf_arm'
    assert task.sim.model.body('dpg_robot/goal').geomnum == [1]  # to be seen


def test_a_urdf_without_masses_is_refused(tmp_path):
    path = write(tmp_path, model='arm.urdf', joints=['pitch'], end_effector='tool0', home=[0.2],
                 sim_dt=0.002)
    (tmp_path / 'arm.urdf').write_text(
        URDF.replace(URDF[URDF.index('<inertial>'):URDF.index('<visual>')], ''))
    with pytest.raises(SpecError, match='^world.robot.model must .*arm.urdf: .*mass and inertia'):
        make_world(load_config(path).world)


LIMIT = 'lower="-1" upper="1.5" effort="20" velocity="2"'


def urdf_world(folder, limit, **changes):
    path = write(folder, model='arm.urdf', joints=['pitch'], end_effector='tool0', home=[0.2],
                 sim_dt=0.002, goal={'lower': [0.4, 0, -0.05], 'upper': [0.4, 0, 0.05]},
                 **changes)
    (folder / 'arm.urdf').write_text(URDF.replace(LIMIT, limit))
    return make_world(load_config(path).world)


@pytest.mark.parametrize('limit, message', [
    *((LIMIT.replace('velocity="2"', f'velocity="{text}"'), 'world.robot.model must give the '
       'velocity limit of pitch in rad/s, at most 30, or world.robot.velocity_limit must, got '
       f'{text}') for text in ('180', '-2', '2.0 rad/s', 'nan')),
    *((LIMIT.replace('lower="-1" upper="1.5"', text), 'world.robot.model must give the revolute '
       'joint pitch a lower limit below the upper one, or world.robot.position_lower and '
       f'position_upper must, got {got}') for text, got in (
           ('lower="1.5" upper="-1"', '1.5 and -1'), ('', '0 and 0')))])
def test_limits_of_a_urdf_are_checked_as_those_of_a_task_file(tmp_path, limit, message):
    assert limit != LIMIT
    with pytest.raises(SpecError) as caught:
        urdf_world(tmp_path, limit, drop=('velocity_limit',))
    assert str(caught.value) == message
    # What the task file says counts.
    urdf_world(tmp_path, limit, position_lower=[-1.0], position_upper=[1.5])


@pytest.mark.parametrize('changes, message', [
    ({'velocity_limit': [2.5]},
     'velocity_limit[0] must be at most the limit of pitch in the model (2 rad/s), got 2.5'),
    ({'torque_limit': [21.0]},
     'torque_limit[0] must be at most the limit of pitch in the model (20 N m), got 21')])
def test_limits_may_be_narrower_than_the_model_has_them_but_not_wider(tmp_path, changes, message):
    """The simulation would hold what the contract does not tell, or the robot."""
    with pytest.raises(SpecError) as caught:
        urdf_world(tmp_path, LIMIT, **changes)
    assert str(caught.value) == f'world.robot.{message}'
    narrower = {key: [0.5 * value[0]] for key, value in changes.items()}
    robot = urdf_world(tmp_path, LIMIT, **narrower).env.sim.robot
    got = robot.velocity if 'velocity_limit' in changes else robot.torque
    assert got.tolist() == next(iter(narrower.values()))


def test_a_joint_that_two_bodies_name_is_told(tmp_path):
    path = write(tmp_path)
    (tmp_path / 'arm.xml').write_text(ARM.replace('name="grip"', 'name="a"'))
    with pytest.raises(SpecError, match='^world.robot.model must be an MJCF .*repeated name'):
        make_world(load_config(path).world)


def test_limits_may_lie_beyond_half_a_turn(tmp_path):
    path = write(tmp_path, joints=['a'], home=[3.6], position_lower=[], goal={
        'lower': [-0.6, 0, 0.2], 'upper': [-0.6, 0, 0.4], 'tolerance': 0.3})
    (tmp_path / 'arm.xml').write_text(ARM.replace('range="-170 170"', 'range="200 340"'))
    assert make_world(load_config(path).world).policy_spec.action_dim == 1


def test_a_policy_knows_its_robot_again(tmp_path):
    config = load_config(write(tmp_path)).world
    spec = make_world(config).policy_spec.with_training(
        TrainingRecord('critic', 1, 2, dump(config)))
    spec = PolicySpec.from_json(spec.to_json())
    model = tmp_path / 'arm.xml'
    assert world_of(spec) == config
    assert config.robot.model == str(model) and len(config.robot.model_hash) == 64
    make_world(world_of(spec))

    moved = model.rename(tmp_path / 'moved.xml')
    with pytest.raises(SpecError, match=f'^world.robot.model must be an MJCF or URDF file, found '
                       f'none at {model}$'):
        make_world(world_of(spec, ['robot.home_spread=0.01']))
    make_world(world_of(spec, [f'robot.model={moved}']))
    moved.write_text(ARM.replace('mass="0.5"', 'mass="0.6"'))
    changed = [f'robot.model={moved}', 'robot.home_spread=0.02']
    with pytest.raises(SpecError, match='^world.robot.model must be the file that was read at '
                       f'first, SHA-256 {config.robot.model_hash[:12]}.*, but {moved} has '):
        make_world(world_of(spec, changed))
    make_world(world_of(spec, [*changed, "robot.model_hash=''"]))
    make_world(world_of(spec, [f'robot.model={moved}', 'robot.model_hash=']))


def test_a_model_that_is_typed_is_meant_from_here(tmp_path, monkeypatch):
    path = write(tmp_path / 'robot')
    (tmp_path / 'other.xml').write_text(ARM)
    monkeypatch.chdir(tmp_path)
    config = load_config(path, ['world.robot.model=other.xml']).world
    assert config.robot.model == str(tmp_path / 'other.xml')
    assert load_config(path).world.robot.model == str(tmp_path / 'robot' / 'arm.xml')


def test_a_run_outlives_its_model_file(tmp_path):
    path, run_dir = write(tmp_path), tmp_path / 'run'
    model, policy = tmp_path / 'arm.xml', tmp_path / 'policy.onnx'
    tiny = ['learner.hidden=[8]', 'learner.denoiser_hidden=[8]', 'learner.gradient_hidden=[8]',
            'trainer.eval_every_steps=0']
    train(load_config(path, [*tiny, 'trainer.env_steps=4']), run_dir)
    moved = model.rename(tmp_path / 'moved.xml')
    with pytest.raises(SpecError, match='found none at'):
        export_run(run_dir, policy, 1)
    there = [f'world.robot.model={moved}']
    export_run(run_dir, policy, 1, there)
    moved.write_text(ARM.replace('<worldbody>', '<worldbody> <!-- as before -->'))
    with pytest.raises(SpecError, match='it was changed since'):
        export_run(run_dir, policy, 1, there)
    changed = [*there, 'world.robot.model_hash=']
    spec, _ = export_run(run_dir, policy, 1, changed)
    assert spec.training.world['robot']['model'] == str(moved)
    assert spec.training.world['robot']['model_hash'] == hash_of(moved)  # from now on
    longer = load_config(run_dir / 'config.yaml', [*changed, 'trainer.env_steps=8'])
    with pytest.raises(SpecError, match='^world.robot.model_hash must be .*, as the training in '):
        train(load_config(path, [*tiny, *there, 'trainer.env_steps=8']), run_dir)  # never silently
    killed = open_trainer(longer, run_dir, resume=True)
    killed.round = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        killed.run()
    killed.close()
    export_run(run_dir, policy, 1)  # folder and checkpoint agree, whenever it ends
    assert train(longer, run_dir).env_steps == 8
    taken = load_config(run_dir / 'config.yaml').world.robot.model_hash
    assert taken == hash_of(moved)
    moved.write_text(ARM.replace('mass="0.5"', 'mass="25"'))
    for later in (lambda: train(None, run_dir), lambda: export_run(run_dir, policy, 1),
                  lambda: evaluate_model(OnnxPolicy(policy), world_of(spec), 1)):
        with pytest.raises(SpecError, match='it was changed since'):
            later()


def test_dead_actuators_hold_nothing(tmp_path):
    config = load_config(write(tmp_path, control='position', home=[-0.5, 1.0]),
                         ['world.dead_actuators=2']).world
    robot = make_world(config)
    robot.reset(seed=0)
    np.testing.assert_allclose(robot.limiter.last[:2], robot.get_wrapper_attr('held_position'))
    assert robot.limiter.last[2:].tolist() == [0.0, 0.0]


def test_a_copy_of_a_task_file_means_the_same_robot(tmp_path):
    config = load_config(write(tmp_path / 'here'))
    copy = tmp_path / 'run.yaml'
    copy.write_text(yaml.safe_dump(dump(config)))
    assert load_config(copy) == config


@pytest.mark.parametrize('name', SIX_AXIS)
def test_packaged_tasks_find_their_robot_anywhere(name):
    config = load_config(name).world
    assert config.robot.model == 'package://dpg_robot/robots/six_axis/six_axis.xml'
    env = make_world(config)
    assert env.policy_spec.robot == 'six_axis'
    assert env.reset(seed=0)[0].shape == (env.policy_spec.obs_dim,)


def test_there_are_packaged_tasks_of_the_arm():
    assert SIX_AXIS == ['six_axis_reach', 'six_axis_track']


def test_the_tutorial_names_every_key_and_shows_none_that_is_unknown():
    text = (ROOT / 'docs/your_robot.md').read_text()
    rows = re.findall(r'^\| (`[^|]*) \|', text.partition('### `world.robot`')[2]
                      .partition('###')[0], re.M)
    told = [name for row in rows for name in re.findall(r'`(\w+)`', row)]
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(RobotConfig))
    shown = yaml.safe_load(re.search(r'```yaml\n(world:.*?)```', text, re.S).group(1))
    config = load(ExperimentConfig, shown)
    assert config.world.robot.control == 'velocity'


def test_the_packaged_policy_fits_the_packaged_task():
    spec = OnnxPolicy(share_path('models', 'six_axis_reach.onnx')).spec
    world = world_of(spec)
    assert world.robot == load_config('six_axis_reach').world.robot
    mine = make_world(world).policy_spec
    assert (mine.observation, mine.action) == (spec.observation, spec.action)


def test_an_end_effector_in_other_units_or_another_frame_is_out_of_range():
    world = make_world(load_config('six_axis_reach').world)
    term, = (t for t in world.policy_spec.observation if t.name == 'end_effector_position')
    sim, rng = world.env.sim, np.random.default_rng(1)
    for angles in rng.uniform(sim.robot.lower, sim.robot.upper, (3000, 6)):
        sim.data.qpos[sim.robot.qpos] = angles
        mujoco.mj_kinematics(sim.model, sim.data)
        assert (sim.end_effector > term.lower).all() and (sim.end_effector < term.upper).all()
    for wrong in (1000 * sim.end_effector, sim.end_effector + (2.0, 0.0, 0.0)):
        assert (wrong < term.lower).any() or (wrong > term.upper).any()


def test_the_six_axis_arm_reaches_70_cm():
    model = make_world(load_config('six_axis_reach').world).env.sim.model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    shoulder = data.joint('shoulder_pitch').xanchor
    assert np.linalg.norm(data.site('tool').xpos - shoulder) == pytest.approx(0.70)
    # Straight up, the joints turn about z, y, y, z, y and z.
    axes = [data.joint(i).xaxis for i in range(6)]
    np.testing.assert_allclose(axes, [np.eye(3)[k] for k in (2, 1, 1, 2, 1, 2)], atol=1e-12)


def test_every_corner_of_the_packaged_region_is_clear_of_the_floor():
    goal = load_config('six_axis_reach').world.robot.goal
    assert min(corner[2] for corner in itertools.product(*zip(goal.lower, goal.upper))) > 0.1


@pytest.mark.parametrize('control', ['velocity', 'position'])
def test_episodes_begin_near_home_within_the_limits(tmp_path, control):
    task = world(tmp_path, control=control, home=[-2.9, 1.0], home_spread=0.2).env
    starts = np.array([task.reset(seed=seed)[0][:2] for seed in range(200)])
    low = np.deg2rad(-170)
    assert starts[:, 0].min() == pytest.approx(low, abs=1e-12)  # and no further
    assert -2.72 < starts[:, 0].max() <= -2.7
    assert 0.8 <= starts[:, 1].min() < 0.82 and 1.18 < starts[:, 1].max() <= 1.2


def test_limits_in_radians_stay_in_radians(tmp_path):
    path = write(tmp_path, model='arm.urdf', joints=['pitch'], end_effector='tool0', home=[0.2],
                 drop=['velocity_limit'], sim_dt=0.002, position_upper=[1.0],
                 goal={'lower': [0.4, 0, 0], 'upper': [0.4, 0, 0]})
    task = make_world(load_config(path).world).env
    assert task.sim.model.joint('pitch').range.tolist() == pytest.approx([-1.0, 1.0])


def test_a_joint_is_not_limited_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr('test_robot_task.ARM', ARM.replace(
        'range="-170 170" actuatorfrcrange', 'actuatorfrcrange'))
    with pytest.raises(SpecError, match=r'position_lower\[0\] must be below position_upper\[0\] '
                       r'\(inf\), or both left out, got -1$'):
        world(tmp_path, position_lower=[-1.0, -1.0])
