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

"""The Fetch arm of gymnasium-robotics on a device: it is welded to a body that is moved."""

from __future__ import annotations

import mujoco
import torch

from dpg_robot.sim.fetch import FINGERS, MAX_STEP_M
from dpg_robot.sim.task import Task
from dpg_robot.sim.warp.noise import Draws
from dpg_robot.sim.warp.physics import Physics, put
from dpg_robot.sim.warp.tasks import DeviceGoalTask

# gymnasium-robotics adds this to the gripper's orientation to tell it to point down.
DOWN = (1.0, 0.0, 1.0, 0.0)
# An object begins no nearer to the gripper than this [m]; so many places are tried, of which all
# are nearer once in a million episodes.
NEAREST, TRIES = 0.1, 64


class _FetchOnDevice(DeviceGoalTask):

    def __init__(self, task: Task, physics: Physics):
        super().__init__(task, physics)
        sim, model = self.sim, self.sim.model
        self.settles = sim.block_gripper
        self.grip = _Site(model, 'robot0:grip', physics)
        self.welded = _welded_body(model)
        self.poses = [physics.view(name)[:, self.welded] for name in ('xpos', 'xquat')]
        # The next command starts from where the gripper was seen last, which where the fingers
        # move is one physics step before where it is.
        self.seen = self.remember('seen_gripper', 7)
        self.fingers = self.places([model.joint(name).qposadr[0] for name in FINGERS])
        self.finger_speeds = self.places([model.joint(name).dofadr[0] for name in FINGERS])
        self.servos = self.places(model.jnt_qposadr[model.actuator_trnid[:, 0]])
        self.down, self.middle = self.constant(DOWN), self.constant(sim.initial_gripper_xpos)

    def begin(self, done: torch.Tensor, draws: Draws) -> None:
        super().begin(done, draws)
        put(self.seen, done, torch.cat(self.poses, 1))

    def command(self, action: torch.Tensor) -> None:
        data = self.physics.data
        data['mocap_pos'][:, 0] = self.seen[:, :3] + MAX_STEP_M * action[:, :3]
        data['mocap_quat'][:, 0] = self.seen[:, 3:] + self.down
        if 'ctrl' in data:  # of fingers, relative to where they are; none if they are blocked
            data['ctrl'].copy_(self.qpos[:, self.servos] + action[:, 3:].sum(1, keepdim=True))

    def finish(self) -> None:
        if self.settles:
            self.qpos.index_fill_(1, self.fingers, 0.0)
            self.physics.settle()
        else:
            self.physics.settle_velocities()
        self.seen.copy_(torch.cat(self.poses, 1))


class FetchReachOnDevice(_FetchOnDevice):
    """Bring the gripper to a point."""

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals from a cube around the gripper, shape (num_envs, 3)."""
        far = self.sim.target_range
        return self.middle + draws.within(-far, far, 3)

    def achieved(self) -> torch.Tensor:
        """Return where the gripper is, shape (num_envs, 3)."""
        return self.grip.position

    def observe(self) -> torch.Tensor:
        """Return position and velocity of the gripper, and the goal."""
        return torch.cat([self.grip.position, self.grip.velocity(), self.goal], 1)


class FetchObjectOnDevice(_FetchOnDevice):
    """Bring an object to a point."""

    def __init__(self, task: Task, physics: Physics):
        """Take the numbers of a CPU task."""
        super().__init__(task, physics)
        self.object = _Site(self.sim.model, 'object0', physics)
        self.aside = self.constant(self.sim.target_offset)
        self.first = self.sim.model.joint('object0:joint').qposadr[0]

    def draw_start(self, draws: Draws) -> dict[str, torch.Tensor]:
        """Put the object on a square around the gripper, but not under it."""
        far = self.sim.obj_range
        tried = draws.within(-far, far, TRIES, 2)
        is_far = torch.linalg.vector_norm(tried, dim=2) >= NEAREST
        chosen = is_far.int().argmax(1)[:, None, None].expand(-1, 1, 2)
        qpos = self.start['qpos'].expand(self.num_envs, -1).clone()
        qpos[:, self.first:self.first + 2] = self.middle[:2] + tried.gather(1, chosen)[:, 0]
        return self.start | {'qpos': qpos}

    def draw_goal(self, draws: Draws) -> torch.Tensor:
        """Return goals on the table or, every other one if they may be, above it."""
        sim, far = self.sim, self.sim.target_range
        goal = self.middle + draws.within(-far, far, 3) + self.aside
        height = draws.within(0.0, 0.45) * (draws.uniform() < 0.5) * sim.target_in_the_air
        goal[:, 2] = sim.height_offset + height
        return goal

    def achieved(self) -> torch.Tensor:
        """Return where the object is, shape (num_envs, 3)."""
        return self.object.position

    def observe(self) -> torch.Tensor:
        """Return gripper, fingers if they move, object and goal."""
        hand = [] if self.settles else [self.qpos[:, self.fingers],
                                        self.qvel[:, self.finger_speeds]]
        turn = self.object.orientation
        return torch.cat([
            self.grip.position, self.grip.velocity(), *hand, self.object.position,
            torch.where(turn[:, :1] < 0, -turn, turn), self.object.velocity(),
            self.object.spin, self.goal], 1)


class _Site:
    """Position, orientation, velocity and angular velocity of a site in all worlds."""

    def __init__(self, model, name, physics):
        site, body = model.site(name).id, model.site_bodyid[model.site(name).id]
        self.position = physics.view('site_xpos')[:, site]
        self.orientation = physics.view('xquat')[:, body]  # the sites here lie as their bodies do
        twist = physics.view('cvel')[:, body]
        self.spin, self._linear = twist[:, :3], twist[:, 3:]
        self._center = physics.view('subtree_com')[:, model.body_rootid[body]]

    def velocity(self):
        # MuJoCo keeps velocities as seen at the center of mass of the whole tree.
        return self._linear + torch.linalg.cross(self.spin, self.position - self._center)


def _welded_body(model):
    """Return the body that a mocap body is welded to."""
    weld = (model.eq_type == mujoco.mjtEq.mjEQ_WELD).nonzero()[0][0]
    bodies = model.eq_obj1id[weld], model.eq_obj2id[weld]
    return next(body for body in bodies if model.body_mocapid[body] < 0)
