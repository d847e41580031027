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

"""The goal tasks of gymnasium-robotics on a device: the Fetch arm and the Shadow hand."""

from __future__ import annotations

from gymnasium_robotics.envs.shadow_dexterous_hand.reach import FINGERTIP_SITE_NAMES
import mujoco
import torch

from dpg_robot.sim.fetch import FINGERS, MAX_STEP_M
from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import Physics, put
from dpg_robot.sim.warp.tasks import DeviceTask

# gymnasium-robotics adds this to the gripper's orientation to tell it to point down.
DOWN = (1.0, 0.0, 1.0, 0.0)
# Of gymnasium-robotics' hand: where finger and thumb shall meet, seen from the palm [m], how far
# apart they stay [m], how that place varies [m], and how often all are told to stay.
MEETING, APART, VARIES, STAYS = (0.0, -0.09, 0.05), 0.005, 0.005, 0.1


class _GoalOnDevice(DeviceTask):

    def __init__(self, task: Task, physics: Physics):
        super().__init__(task, physics)
        sim = self.sim
        self.start = {'qpos': self.constant(sim.initial_qpos),
                      'qvel': self.constant(sim.initial_qvel)}
        self.goal = self.remember('goal', len(task.policy_spec.places_of(
            task.desired_goal_terms)))
        self.is_sparse, self.tolerance = sim.reward_type == 'sparse', sim.distance_threshold

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        """Begin where all episodes do, with a goal of its own."""
        self.physics.reset(done, self.start)
        self.physics.settle()
        put(self.goal, done, self.draw_goal(draws))

    def judge(self, action: torch.Tensor):
        """Reward and success depend on the distance to the goal alone."""
        far = torch.linalg.vector_norm(self.achieved() - self.goal, dim=1)
        reward = -(far > self.tolerance).float() if self.is_sparse else -far
        return reward, None, far < self.tolerance


class FetchReachOnDevice(_GoalOnDevice):
    """FetchReach of gymnasium-robotics: the gripper is welded to a body that is moved."""

    settles = True

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        model, site = self.sim.model, self.sim.model.site('robot0:grip')
        body = model.site_bodyid[site.id]
        self.grip = physics.view('site_xpos')[:, site.id]
        self.twist = physics.view('cvel')[:, body]
        self.center = physics.view('subtree_com')[:, model.body_rootid[body]]
        welded = _welded_body(model)
        self.position = physics.view('xpos')[:, welded]
        self.orientation = physics.view('xquat')[:, welded]
        self.fingers = self.places([model.joint(name).qposadr[0] for name in FINGERS])
        self.down, self.middle = self.constant(DOWN), self.constant(self.sim.initial_gripper_xpos)

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals from a cube around the gripper, shape (num_envs, 3)."""
        far = self.sim.target_range
        return self.middle + draws.within(-far, far, 3)

    def command(self, action: torch.Tensor) -> None:
        """Move what the gripper is welded to; the fingers stay."""
        data = self.physics.data
        data['mocap_pos'][:, 0] = self.position + MAX_STEP_M * action
        data['mocap_quat'][:, 0] = self.orientation + self.down

    def finish(self) -> None:
        """Keep the fingers where they are."""
        self.qpos.index_fill_(1, self.fingers, 0.0)
        super().finish()

    def achieved(self) -> torch.Tensor:
        """Return where the gripper is, shape (num_envs, 3)."""
        return self.grip

    def observe(self) -> torch.Tensor:
        """Return position and velocity of the gripper, and the goal."""
        # MuJoCo keeps velocities as seen at the center of mass of the whole arm.
        spin, velocity = self.twist[:, :3], self.twist[:, 3:]
        velocity = velocity + torch.linalg.cross(spin, self.grip - self.center)
        return torch.cat([self.grip, velocity, self.goal], 1)


class HandReachOnDevice(_GoalOnDevice):
    """HandReach of gymnasium-robotics: finger and thumb meet above the palm."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        model = self.sim.model
        joints = [model.joint(i) for i in range(model.njnt)
                  if model.joint(i).name.startswith('robot')]
        self.joints = (self.places([joint.qposadr[0] for joint in joints]),
                       self.places([joint.dofadr[0] for joint in joints]))
        self.sites = physics.view('site_xpos')
        self.tips = self.places([model.site(name).id for name in FINGERTIP_SITE_NAMES])
        self.rest = self.constant(self.sim.initial_goal).reshape(-1, 3)
        self.meeting = self.constant(self.sim.palm_xpos) + self.constant(MEETING)
        self.scale = self.constant(self.spec.action_scale)
        self.offset = self.constant(self.spec.action_offset)
        task.reset()
        self.held = self.constant(task.held_action)

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals of all fingertips, shape (num_envs, 15)."""
        meeting = (self.meeting + VARIES * draws.normal(3))[:, None]
        away = meeting - self.rest
        met = meeting - APART * away / torch.linalg.vector_norm(away, dim=2, keepdim=True)
        # The thumb is the last; one of the others meets it.
        tip = torch.arange(len(self.rest), device=self.device)
        thumb = len(self.rest) - 1
        finger = (draws.uniform(1) * thumb).long().clamp(max=thumb - 1)
        moves = ((tip == finger) | (tip == thumb)) & (draws.uniform(1) >= STAYS)
        return torch.where(moves[:, :, None], met, self.rest).flatten(1)

    def command(self, action: torch.Tensor) -> None:
        """Tell each servo where to go."""
        self.physics.data['ctrl'].copy_(action * self.scale + self.offset)

    def achieved(self) -> torch.Tensor:
        """Return where the fingertips are, shape (num_envs, 15)."""
        return self.sites[:, self.tips].flatten(1)

    def observe(self) -> torch.Tensor:
        """Return joint angles and velocities, fingertips and goals."""
        qpos, qvel = self.joints
        return torch.cat([self.qpos[:, qpos], self.qvel[:, qvel], self.achieved(), self.goal], 1)

    @property
    def held_action(self) -> torch.Tensor:
        """Return what tells each servo to stay where episodes begin, shape (action_dim,)."""
        return self.held


def _welded_body(model):
    """Return the body that a mocap body is welded to."""
    weld = (model.eq_type == mujoco.mjtEq.mjEQ_WELD).nonzero()[0][0]
    bodies = model.eq_obj1id[weld], model.eq_obj2id[weld]
    return next(body for body in bodies if model.body_mocapid[body] < 0)
