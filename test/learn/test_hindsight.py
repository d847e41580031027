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

"""Hindsight: which goals it may take, what changes with them, and what that does to a gradient."""

from types import SimpleNamespace

import numpy as np
from policy_files import pose_spec
import pytest
from small_training import assert_same_parameters, stop_after, tiny_config, train
import torch

from dpg_robot import experiment
from dpg_robot.contract.spec import ObservationTerm
from dpg_robot.contract.strict import SpecError
from dpg_robot.experiment import load_config, open_trainer
from dpg_robot.learn.denoiser import Denoiser
from dpg_robot.learn.hindsight import Goals, goals_of, HindsightReplay, relabel
from dpg_robot.learn.outcome import change_and_reward
from dpg_robot.learn.replay import Batch, Replay

ALWAYS = 10**9
ASKED = -1.0
NUM = 100_000


def distance_rule(achieved, desired):
    """Return minus the distance, and success where there is none."""
    distance = np.abs(achieved - desired).sum(-1)
    return -distance, distance == 0


GOALS = Goals([0], [1], distance_rule)


class Stream:
    """Worlds whose states are numbers that tell world and round, with episodes of any length.

    The observation is (number, goal); every step ends at a number of its own.
    """

    def __init__(self, replay, lengths, is_held_out=lambda time: False):
        """Take the lengths of each world's episodes, which come round and round."""
        self.replay, self.lengths, self.is_held_out = replay, lengths, is_held_out
        self.time, self.step, self.episode = 0, [0] * len(lengths), [0] * len(lengths)
        self.where, self.ended = {}, set()  # (world, episode, step) of each number

    def advance(self, rounds):
        for _ in range(rounds):
            worlds = range(len(self.lengths))
            number = torch.tensor([1000.0 * world + self.time for world in worlds])
            for world in worlds:
                self.where[int(number[world])] = (world, self.episode[world], self.step[world])
            asked = torch.full_like(number, ASKED)
            self.replay.add(Batch(
                torch.stack([number - 1, asked], -1), number[:, None] / 1e4, 10 * number,
                torch.stack([number, asked], -1), torch.zeros_like(number),
                torch.full_like(number, self.is_held_out(self.time)),
                torch.full_like(number, 0.5)))
            last = [self.lengths[w][self.episode[w] % len(self.lengths[w])] for w in worlds]
            over = torch.tensor([self.step[world] + 1 == last[world] for world in worlds])
            self.replay.end_episodes(over)
            for world in worlds:
                if over[world]:
                    self.ended.add((world, self.episode[world]))
                self.episode[world] += int(over[world])
                self.step[world] = 0 if over[world] else self.step[world] + 1
            self.time += 1


def make_replay(capacity, num_envs, goals=GOALS, ratio=ALWAYS):
    return HindsightReplay(capacity, 2, 1, num_envs, goals, ratio)


def sampled(stream, num):
    """Return for each of the transitions drawn its end, and where its goal was achieved, or None.

    :return: a list of ((world, episode, step), (world, episode, step) or None).
    """
    batch = stream.replay.sample(num)
    torch.testing.assert_close(batch.action[:, 0] * 1e4, batch.next_obs[:, 0])
    goals = batch.obs[:, 1]
    assert torch.equal(goals, batch.next_obs[:, 1])
    return [(stream.where[int(end)], None if goal == ASKED else stream.where[int(goal)])
            for end, goal in zip(batch.next_obs[:, 0].tolist(), goals.tolist())]


# Three worlds whose episodes begin and end at different times; the ring's length is no multiple.
LENGTHS = ((4,), (3, 7), (1, 5, 2))


@pytest.mark.parametrize('capacity, rounds', [
    (200, 20),  # room for all
    (31, 9),    # not yet full
    (31, 10),   # full, nothing overwritten but half a round
    (31, 24),   # several times around
    (8, 22), (7, 25)])  # episodes longer than what is stored
def test_goals_are_achieved_later_in_the_same_episode(capacity, rounds):
    stream = Stream(make_replay(capacity, 3), LENGTHS)
    stream.advance(rounds)
    seen = set(sampled(stream, 6000))
    newest = sorted(stream.where, key=lambda number: (number % 1000, number))[-capacity:]
    expected = set()
    for place in (stream.where[number] for number in newest):
        world, episode, step = place
        if (world, episode) in stream.ended:
            expected |= {(place, other) for other in stream.where.values()
                         if other[:2] == (world, episode) and other[2] >= step}
        else:  # its end is not known yet
            expected.add((place, None))
    assert seen == expected


def test_the_newest_are_not_drawn_where_they_shall_not_be_but_may_give_goals():
    stream = Stream(make_replay(31, 3), LENGTHS)
    stream.advance(24)
    time_of = {place: number % 1000 for number, place in stream.where.items()}
    batch = stream.replay.sample(3000, num_new=6)
    ends = {int(end) % 1000 for end in batch.next_obs[:, 0]}
    assert max(ends) == 21
    goals = {int(goal) % 1000 for goal in batch.obs[:, 1] if goal != ASKED}
    assert max(goals) == max(time_of[place] for place in time_of if place[:2] in stream.ended)


def test_each_later_step_is_as_likely():
    stream, num = Stream(make_replay(100, 1), ((4,),)), 20_000
    stream.advance(4)
    counts = {}
    for pair in sampled(stream, num):
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 4 + 3 + 2 + 1
    for (end, goal), count in counts.items():
        chance = 0.25 / (4 - end[2])
        assert abs(count - num * chance) < 4 * (num * chance * (1 - chance)) ** 0.5, (end, goal)


@pytest.mark.parametrize('ratio', [1, 4])
def test_share_of_relabelled_transitions(ratio):
    stream, num = Stream(make_replay(100, 2, ratio=ratio), ((5,), (5,))), 20_000
    stream.advance(10)
    count, share = sum(goal is not None for _, goal in sampled(stream, num)), ratio / (ratio + 1)
    assert abs(count - num * share) < 4 * (num * share * (1 - share)) ** 0.5


def test_no_goal_comes_from_beyond_what_is_held_out_which_stays_as_it_is():
    stream = Stream(make_replay(100, 2), ((9,), (5,)), lambda time: time // 3 % 2 == 1)
    stream.advance(18)
    seen = set(sampled(stream, 6000))
    time_of = {place: number % 1000 for number, place in stream.where.items()}
    runs = {(time_of[end] // 3, time_of[goal] // 3) for end, goal in seen if goal}
    assert runs == {(run, run) for run in (0, 2, 4)}
    # In a run of three steps of one episode, the first may take any of three goals.
    first = next(place for place, time in time_of.items() if time == 6 and place[0] == 0)
    assert {goal[2] - first[2] for end, goal in seen if end == first} == {0, 1, 2}
    held_out = stream.replay.held_out(100)
    assert len(held_out.reward) == 18 and (held_out.obs[:, 1] == ASKED).all()
    assert torch.equal(held_out.reward, 10 * held_out.next_obs[:, 0])


def test_a_transition_is_always_that_of_one_goal():
    stream = Stream(make_replay(100, 2, ratio=1), ((6,), (4,)))
    stream.advance(12)
    batch = stream.replay.sample(500)
    new = batch.obs[:, 1] != ASKED
    assert 100 < new.sum() < 400
    end, goal = batch.next_obs[:, 0], batch.next_obs[:, 1]
    assert torch.equal(batch.reward, torch.where(new, -(end - goal).abs(), 10 * end))
    assert batch.log_prob[new].isnan().all() and (batch.log_prob[~new] == 0.5).all()
    # What the denoiser is told: the state's own change, no change of goal, and that reward.
    expected = torch.stack([torch.ones(500), torch.zeros(500), batch.reward], -1)
    torch.testing.assert_close(change_and_reward(batch), expected)
    # What is stored has not changed.
    assert (stream.replay.data.obs[:24, 1] == ASKED).all()
    assert torch.equal(stream.replay.data.reward[:24], 10 * stream.replay.data.next_obs[:24, 0])


@pytest.mark.parametrize('ends, expected', [(False, [0, 1, 0, 1, 1]), (True, [1, 1, 0, 0, 1])])
def test_termination_by_success_follows_the_goal_and_any_other_stays(ends, expected):
    # Achieved, old goal, new goal, terminated before; the last keeps its old goal.
    rows = torch.tensor([[5.0, 1.0, 5.0, 0.0],    # now a success
                         [5.0, 1.0, 2.0, 1.0],    # fell over
                         [5.0, 1.0, 2.0, 0.0],
                         [5.0, 5.0, 2.0, 1.0],    # was a success
                         [5.0, 5.0, 2.0, 1.0]])
    obs, zeros = rows[:, :2], torch.zeros(5)
    batch = Batch(obs, zeros[:, None], zeros, obs, rows[:, 3], zeros, zeros)
    chosen = torch.tensor([True, True, True, True, False])
    got = relabel(batch, rows[:, 2:3], chosen, GOALS._replace(ends_episode=ends))
    assert got.terminated.tolist() == expected
    assert got.obs[:, 1].tolist() == [5, 2, 2, 2, 5]


@pytest.mark.parametrize('capacity, rounds', [(200, 13), (31, 13)])
def test_state_round_trip_continues_bit_identically(capacity, rounds):
    stream = Stream(make_replay(capacity, 3, ratio=2), LENGTHS)
    stream.advance(rounds)
    resumed = make_replay(capacity, 3, ratio=2)
    resumed.load_state_dict(stream.replay.state_dict())
    batches, snapshot = [], stream.replay.state_dict()
    for replay in (stream.replay, resumed):
        replay.load_state_dict(snapshot)
        again = Stream(replay, LENGTHS)
        again.time, again.step, again.episode = stream.time, [*stream.step], [*stream.episode]
        again.advance(6)
        torch.manual_seed(3)
        batches.append(replay.sample(300))
    for got, wanted in zip(*batches):
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


def test_a_batch_of_other_worlds_is_refused():
    with pytest.raises(ValueError, match='^a batch must hold one transition of each of 2 worlds, '
                                         'got 3$'):
        Stream(make_replay(10, 2), LENGTHS).advance(1)


def test_goals_of_a_task_are_found_by_name():
    def term(name, size):
        return ObservationTerm(name, name, 'std_msgs/msg/Float64MultiArray',
                               tuple(f'data[{i}]' for i in range(size)), 'm', 0.1)
    spec = pose_spec(task='push', observation=(
        term('hand', 3), term('puck', 2), term('goal', 2)))
    task = SimpleNamespace(achieved_goal_terms=('puck',), desired_goal_terms=('goal',),
                           goal_reward=distance_rule)
    world = SimpleNamespace(policy_spec=spec, unwrapped=task)
    assert goals_of(world) == Goals([3, 4], [5, 6], distance_rule, False)
    task.goal_ends_episode = True
    assert goals_of(world).ends_episode


SPARSE = ('world.reward=sparse', 'trainer.hindsight=4', 'trainer.warmup_steps=110')


def test_packaged_config():
    config = load_config('fetch_reach_sparse')
    assert (config.world.task, config.world.reward) == ('fetch_reach', 'sparse')
    assert config.trainer.hindsight == 4


def test_training_with_hindsight_and_its_resumption(tmp_path):
    """Sparse rewards are -1, or 0 within 5 cm; goals of both kinds are learned from."""
    whole = train(tiny_config(*SPARSE), tmp_path / 'whole')
    # Stopped in the middle of the second episode of both worlds.
    train(tiny_config(*SPARSE), tmp_path / 'stopped', should_stop=stop_after(70))
    resumed = train(None, tmp_path / 'stopped')
    assert_same_parameters(whole, resumed)
    assert torch.equal(whole.algorithm.replay.left, resumed.algorithm.replay.left)

    batch = whole.algorithm.replay.sample(2000)
    asked = set(map(tuple, whole.algorithm.replay.data.obs[:200, 6:].tolist()))
    assert len(asked) == 4
    relabelled = torch.tensor([tuple(goal) not in asked for goal in batch.obs[:, 6:].tolist()])
    assert relabelled.float().mean().item() == pytest.approx(0.8, abs=0.04)
    distance = (batch.next_obs[:, :3] - batch.next_obs[:, 6:]).norm(dim=-1)
    assert torch.equal(batch.reward, -(distance > 0.05).float())
    assert (batch.reward[relabelled] == 0).any() and (batch.reward[relabelled] == -1).any()
    assert torch.equal(batch.obs[:, 6:], batch.next_obs[:, 6:])


def test_without_hindsight_nothing_is_in_the_way(tmp_path):
    trainer = train(tiny_config('trainer.env_steps=20'), tmp_path)
    assert type(trainer.algorithm.replay) is Replay
    assert trainer.algorithm.replay.state_dict().keys() == {'position', 'data'}


@pytest.mark.parametrize('overrides, message', [
    (['trainer.hindsight=-1'], '^trainer.hindsight must be at least 0, got -1$'),
    (['trainer.hindsight=4', 'learner.route=inverted'],
     '^trainer.hindsight must be 0 for the route inverted, .* got 4$'),
    (['trainer.hindsight=4', 'world.task=reacher'],
     '^trainer.hindsight must be 0 for reacher, which has no goals$')])
def test_mistakes_are_named(tmp_path, overrides, message):
    with pytest.raises(SpecError, match=message):
        open_trainer(tiny_config(*overrides), tmp_path, resume=False)


def test_a_trainer_is_not_made_without_the_goals_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, 'hindsight_goals', lambda config: None)
    with pytest.raises(SpecError, match='^trainer.hindsight must be 0 where the goals are not '
                                        'given, got 4$'):
        open_trainer(tiny_config('trainer.hindsight=4'), tmp_path, resume=False)


class Walk:
    """Two steps ``x' = x + a + nu w`` from 0, ``a ~ N(0, tau^2)``, reward ``-(x' - g)^2``.

    Of the first step the goal is what the second one reaches: given x', ``g ~ N(x', kappa^2)``.
    """

    tau, nu, sigma = 0.3, 0.25, 0.2
    kappa = (tau ** 2 + nu ** 2) ** 0.5
    rho = kappa ** 2 / (kappa ** 2 + nu ** 2)
    goals = Goals([0], [1], lambda achieved, desired: (-((achieved - desired) ** 2)[:, 0],
                                                       np.zeros(len(achieved), bool)))

    def transitions(self, num):
        """Return about num / 4 relabelled first steps whose goals the second steps reached."""
        replay = make_replay(2 * num, num, self.goals)
        x = torch.zeros(num, 1)
        for _ in range(2):
            action = self.tau * torch.randn(num, 1)
            after = x + action + self.nu * torch.randn(num, 1)
            asked = torch.full((num, 1), ASKED)
            replay.add(Batch(torch.cat([x, asked], -1), action, torch.zeros(num),
                             torch.cat([after, asked], -1), torch.zeros(num), torch.zeros(num)))
            x = after
        replay.end_episodes(torch.ones(num, dtype=torch.bool))
        batch = replay.sample(num)
        rows = (batch.obs[:, 0] == 0) & (batch.obs[:, 1] != batch.next_obs[:, 0])
        return Batch(*(values[rows] for values in batch))

    def denoise(self, noised, *others):
        """Return E[a | a~, others] and its variance; each other is (values, var around a)."""
        evidence = [(0.0, self.tau ** 2), (noised, self.sigma ** 2), *others]
        precision = sum(1 / variance for _, variance in evidence)
        return sum(value / variance for value, variance in evidence) / precision, 1 / precision

    def exact(self, batch):
        """Return a_hat, and the score of the relabelled outcomes at a_hat."""
        noised = batch.action + self.sigma * torch.randn_like(batch.action)
        goal, after = batch.obs[:, 1:], batch.next_obs[:, :1]
        null, variance = self.denoise(noised, (goal, self.nu ** 2 + self.kappa ** 2))
        # Given x', the goal tells nothing about the action.
        given, _ = self.denoise(noised, (after, self.nu ** 2))
        return null, (given - null) / variance

    def without_goal(self, batch):
        """Return a_hat, the score of the world's own outcomes there, and Var[a | a~]."""
        noised = batch.action + self.sigma * torch.randn_like(batch.action)
        null, variance = self.denoise(noised)
        return null, (batch.next_obs[:, :1] - null) / (variance + self.nu ** 2), variance


def slope(estimate, distance):
    """Return the slope of estimates on a_hat - g through 0, and its standard error."""
    size = distance.square().sum()
    value = (estimate * distance).sum() / size
    error = ((estimate - value * distance) * distance).square().sum().sqrt() / size
    return value.item(), error.item()


def baseline_of(y, distance):
    """Return E[y | a_hat, g], by least squares: it is quadratic in a_hat - g."""
    x = torch.cat([torch.ones_like(distance), distance.square()], -1).double()
    return (x @ torch.linalg.lstsq(x, y[:, None].double()).solution).float()


def test_the_gradient_of_relabelled_data_is_too_small_by_the_square_of_rho():
    walk = Walk()
    batch = walk.transitions(NUM)
    goal, after = batch.obs[:, 1:], batch.next_obs[:, :1]
    assert abs(len(goal) - NUM / 4) < 4 * (NUM * 3 / 16) ** 0.5
    # What the future says of the present: E[x' | a, g] = rho a + (1 - rho) g.
    seen, error = slope(after - goal, batch.action - goal)
    assert abs(seen - walk.rho) < 4 * error and walk.rho < 0.75
    at, score = walk.exact(batch)
    baseline = baseline_of(batch.reward, at - goal)
    for offset in (0.0, 0.3):  # any baseline
        advantage = batch.reward[:, None] - baseline + offset
        seen, error = slope(advantage * score, at - goal)
        assert abs(seen + 2 * walk.rho ** 2) < 4 * error < 0.2


def test_a_score_without_the_goal_has_the_same_bias_and_needs_the_right_baseline():
    walk = Walk()
    batch = walk.transitions(NUM)
    goal = batch.obs[:, 1:]
    at, score, variance = walk.without_goal(batch)
    # There nu includes what is unsure about the action.
    total = walk.kappa ** 2 + walk.nu ** 2 + variance
    expected = -2 * (walk.kappa ** 2 / total) ** 2
    advantage = batch.reward[:, None] - baseline_of(batch.reward, at - goal)
    for offset, bias in ((0.0, 0.0), (0.3, -0.3 / total)):  # E[score | a_hat, g] is not 0
        seen, error = slope((advantage + offset) * score, at - goal)
        assert abs(seen - expected - bias) < 4 * error < 0.2


def test_goals_of_other_episodes_leave_the_gradient_as_it_is():
    walk = Walk()
    batch = walk.transitions(NUM)
    goal = batch.obs[torch.randperm(len(batch.obs)), 1:]
    batch = relabel(batch, goal, torch.ones(len(goal), dtype=torch.bool), walk.goals)
    at, score, _ = walk.without_goal(batch)
    advantage = batch.reward[:, None] - baseline_of(batch.reward, at - goal)
    seen, error = slope(advantage * score, at - goal)
    assert abs(seen + 2) < 4 * error < 0.2


def test_a_trained_denoiser_finds_the_score_of_the_relabelled_outcomes():
    walk = Walk()
    train_set, test_set = walk.transitions(NUM), walk.transitions(NUM)
    denoiser = Denoiser(1, 1, 1, (64, 64), walk.sigma)
    denoiser.train()
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 600)
    for _ in range(600):
        rows = torch.randint(len(train_set.reward), (512,))
        loss = denoiser(train_set.action[rows], train_set.obs[rows, 1:],
                        train_set.next_obs[rows, :1]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    denoiser.eval()
    goal = test_set.obs[:, 1:]
    got = denoiser(test_set.action, goal, test_set.next_obs[:, :1])
    baseline = baseline_of(test_set.reward, got.action - goal)
    seen, error = slope((test_set.reward[:, None] - baseline) * got.score, got.action - goal)
    assert abs(seen + 2 * walk.rho ** 2) < 4 * error < 0.2
