"""What environments answer follows from each agent alone, however many step together and whatever draws."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import FORWARD, GOAL, LEFT, RIGHT, STOP, measures, motion
from navprune.tasks.config import TaskConfig
from navprune.tasks.expert import shortest_path_actions
from navprune.tasks.orders import Shuffled
from navprune.tasks.pointnav import PointNavEnv

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
EPISODES = read_episodes(REFERENCE, "reference", "val")
LIBRARY = SceneLibrary()
BLIND = TaskConfig(sensors=(), max_steps=30)


def make_env(order, num_envs, config=BLIND):
    return PointNavEnv(EPISODES, REFERENCE, order, num_envs, config, library=LIBRARY, threads=1)


class Alone:
    """One agent in its episode, by plain formulas: the twin of the batches."""

    def __init__(self, episode, finder, task):
        self.episode, self.finder, self.task = episode, finder, task
        self.position = np.array(episode.start_position, np.float32)
        self.rotation = np.array(episode.start_rotation, np.float32)
        self.goal, self.measured_at = np.array(episode.goal_position), self.position.astype(float)
        self.distance = self.shortest = self.geodesic()
        self.travelled = self.gained = 0.0
        self.steps = self.collisions = 0

    def geodesic(self):
        return float(self.finder.geodesic_distance(self.position[None], self.goal[None])[0])

    def step(self, action):
        """Reward and, where the episode is over, its measures."""
        before, task = self.distance, self.task
        self.steps += 1
        if action in (LEFT, RIGHT):
            angle = math.radians(task.turn_angle) * (1 if action == LEFT else -1)
            self.rotation = motion.turn(self.rotation[None], [angle])[0]
        elif action == FORWARD:
            self.walk()
        success = action == STOP and self.distance < task.success_distance
        reward = task.slack_reward + before - self.distance + task.success_reward * success
        self.gained += reward
        over = action == STOP or self.steps >= task.max_steps
        return reward, self.measures(success) if over else None

    def walk(self):
        start = self.position
        target = motion.aim(start[None], self.rotation[None], self.task.forward_step)
        reached = self.finder.step(start[None], target, sliding=self.task.sliding).astype(np.float32)
        self.position = motion.settle(target, reached)[0]
        x, y, z = (float(b) - float(a) for a, b in zip(start, self.position))
        self.travelled += math.sqrt(x * x + y * y + z * z)
        self.collisions += int(motion.collided(start[None], target, reached)[0])
        if not np.allclose(self.measured_at, self.position.astype(float), atol=measures.MOVED_TOLERANCE):
            self.measured_at, self.distance = self.position.astype(float), self.geodesic()

    def measures(self, success):
        return {
            "success": float(success),
            "spl": measures.spl(success, self.shortest, self.travelled),
            "soft_spl": measures.soft_spl(self.distance, self.shortest, self.travelled),
            "distance_to_goal": self.distance,
            "reward": self.gained,
            "collisions": float(self.collisions),
            "steps": float(self.steps),
        }

    def sees(self):
        heading = np.array([2 * math.atan2(float(self.rotation[1]), float(self.rotation[3]))])
        return measures.goal_vectors(self.position[None], heading, self.goal[None])[0]

    def expert(self):
        task, heading = self.task, 2 * math.atan2(float(self.rotation[1]), float(self.rotation[3]))
        how = {"success_distance": task.success_distance, "forward_step": task.forward_step, "sliding": task.sliding}
        state = self.position[None].astype(float), np.array([heading]), self.goal[None], np.array([self.distance])
        return int(shortest_path_actions(self.finder, *state, turn_angle=math.radians(task.turn_angle), **how)[0])


@pytest.mark.parametrize("sliding", [True, False])
def test_answers_are_those_of_agents_one_at_a_time_bit_for_bit(sliding):
    task = TaskConfig(sensors=(), max_steps=30, sliding=sliding)
    env = make_env(Shuffled(len(EPISODES), 6, seed=5), 6, task)
    seen, rng, ended = env.reset(), np.random.default_rng(1), 0
    alone = [Alone(env.episodes[i], env.scene(i).pathfinder, task) for i in range(6)]
    assert len({id(agent.finder) for agent in alone}) == 2
    for _ in range(90):
        expert = env.expert_actions()
        assert expert.tolist() == [agent.expert() for agent in alone]
        strays = torch.from_numpy(rng.random(6) < 0.3)
        actions = torch.where(strays, torch.from_numpy(rng.choice([0, 1, 2, 3], 6, p=[0.05, 0.65, 0.15, 0.15])), expert)
        answer = env.step(actions)
        finished = {end.env: end.measures for end in answer.finished}
        for i, agent in enumerate(alone):
            reward, measured = agent.step(int(actions[i]))
            assert answer.reward[i] == np.float32(reward)
            assert finished.get(i) == measured
            assert bool(answer.terminated[i]) == (measured is not None and actions[i] == STOP)
            assert bool(answer.truncated[i]) == (measured is not None and actions[i] != STOP)
            if measured is not None:
                ended += 1
                alone[i] = agent = Alone(env.episodes[i], env.scene(i).pathfinder, task)
            assert (env.positions[i] == agent.position).all()
            np.testing.assert_array_equal(answer.observations[GOAL][i], agent.sees())
    assert ended > 12 and seen.keys() == {GOAL}


def test_a_state_from_before_rotations_goes_on():
    env, other = (make_env(Shuffled(len(EPISODES), 3, seed=0), 3) for _ in range(2))
    env.reset()
    env.step(torch.tensor([LEFT, RIGHT, FORWARD]))
    state = env.state_dict()
    state["headings"] = torch.from_numpy(env.headings)
    state["positions"] = state["positions"].double()
    del state["rotations"]
    seen = other.load_state_dict(state)
    np.testing.assert_allclose(seen[GOAL], env.task.observe(np.arange(3))[GOAL], atol=1e-6)


def test_actions_that_there_are_not_are_refused():
    env = make_env(Shuffled(len(EPISODES), 2, seed=0), 2)
    env.reset()
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=f"environment 1 was given action {wrong}; actions are 0 to 3"):
            env.step(torch.tensor([LEFT, wrong]))


def test_the_nearest_depth_lies_before_the_farthest():
    with pytest.raises(UserError, match=r"min_depth is 2, not less than task\.max_depth, 2"):
        TaskConfig(min_depth=2, max_depth=2)
