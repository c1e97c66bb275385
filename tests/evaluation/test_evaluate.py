import io
import json

import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.evaluation.agents import GoalFollower, PolicyAgent, RandomAgent, ShortestPathAgent
from navprune.evaluation.evaluate import (
    Recorder,
    episode_generator,
    evaluate,
    key_of,
    summarise,
)
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.progress import ProgressLine


def sharp_policy(encoder, rnn, layers):
    encoder = encoder_spec(encoder, input=(1, 32, 32), base_planes=8)
    policy = build(PolicySpec(encoder, 64, 64, rnn, layers), seed=3)
    # Fresh heads choose all actions alike; sharper ones let the observations decide.
    policy.action_distribution["linear"].weight.data *= 100
    policy.action_distribution["linear"].bias.data[0] -= 3
    return policy


@pytest.fixture(scope="module")
def policy():
    return sharp_policy("resnet18", "gru", 1)


def plain_loop(make_env, agent, episodes, seed):
    """One episode after the other, each in an environment of its own."""
    records = []
    for episode in episodes:
        env = make_env([episode], 1)
        observations, masks = env.reset(), torch.tensor([False])
        agent.start(1)
        rng = episode_generator(seed, episode)
        finished = []
        while not finished:
            draws = torch.tensor([rng.random()], dtype=torch.float64)
            actions = agent.act(observations, masks, torch.tensor([0]), draws)
            observations, _, terminated, truncated, finished, _ = env.step(actions)
            masks = ~(terminated | truncated)
        records.append({"scene": episode.scene_id, "episode_id": episode.episode_id} | finished[0].measures)
    return records


@pytest.mark.parametrize("greedy", [True, False])
def test_result_does_not_depend_on_the_number_of_environments(policy, greedy, episodes, make_env):
    agent = PolicyAgent(policy, greedy, chunk=8)
    expected = plain_loop(make_env, agent, episodes, seed=5)
    assert len({(r["steps"], r["length"]) for r in expected}) > (1 if greedy else 5)  # they do differ
    for count in (1, 3, 8, 13):
        result = evaluate(make_env(episodes, count), agent, episodes, seed=5)
        assert result.episodes == expected
        assert result.measures == summarise([expected])
        assert result.frames_per_second > 0


@pytest.mark.parametrize("kind", [("resnet50", "lstm", 2), ("resnet18", "gru", 1)], ids=str)
def test_logits_are_the_same_to_the_bit(kind, episodes, make_env):
    """Actions alone could hide last bits: compare the logits of the second step."""
    policy = sharp_policy(*kind)

    def logits(env_count, row):
        agent, env = PolicyAgent(policy), make_env(episodes, env_count)
        observations, masks = env.reset(), torch.zeros(env_count, dtype=torch.bool)
        agent.start(env_count)
        rows = torch.arange(env_count)
        agent.act(observations, masks, rows, torch.zeros(env_count, dtype=torch.float64))
        return agent._forward(observations, ~masks, rows[row : row + 1])

    torch.testing.assert_close(logits(1, 0), logits(9, 0), rtol=0, atol=0)
    torch.testing.assert_close(logits(5, 4), logits(11, 4), rtol=0, atol=0)


def test_samples_depend_on_the_seed(episodes, make_env):
    runs = [evaluate(make_env(episodes, 4), RandomAgent(), episodes, seed=seed).episodes for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_controls_reach_goals_in_an_empty_world(episodes, make_env):
    env = make_env(episodes, 4, limit=60)
    assert evaluate(env, ShortestPathAgent(env), episodes).measures["success"]["mean"] == 1
    assert evaluate(make_env(episodes, 4, limit=60), GoalFollower(), episodes).measures["success"]["mean"] > 0.5


def test_records_stand_in_the_order_of_the_data_set(episodes, make_env, tmp_path):
    shuffled = [episodes[i] for i in np.random.default_rng(0).permutation(len(episodes))]
    result = evaluate(make_env(shuffled, 3), GoalFollower(), shuffled)
    result.write_episodes(tmp_path / "episodes.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [(line["scene"], line["episode_id"]) for line in lines] == [key_of(episode) for episode in shuffled]
    assert lines == result.episodes
    assert result.to_json("val")["episodes"] == len(episodes)


def test_recorder_keeps_the_chosen_episodes_only(episodes, make_env):
    chosen = [key_of(episodes[i]) for i in (0, 7)]
    recorder = Recorder(chosen)
    result = evaluate(make_env(episodes, 3), GoalFollower(), episodes, recorder=recorder)
    assert set(recorder.recordings) == set(chosen)
    for key, recording in recorder.recordings.items():
        record = next(r for r in result.episodes if (r["scene"], r["episode_id"]) == key)
        steps = int(record["steps"])
        assert len(recording.positions) == len(recording.headings) == len(recording.views["depth"]) == steps
        assert recording.views["depth"][0].shape == (32, 32, 1)
        np.testing.assert_array_equal(recording.positions[0], recording.episode.start_position)
        moved = np.linalg.norm(np.diff(recording.positions, axis=0), axis=1).sum()
        assert moved == pytest.approx(record["length"])
        assert recording.measures["steps"] == steps
        assert recording.pathfinder == f"path finder of {key[0]}"


def test_progress_ends_with_every_episode(episodes, make_env):
    stream = io.StringIO()
    line = ProgressLine("val", len(episodes), "episodes", stream=stream)
    evaluate(make_env(episodes, 3), GoalFollower(), episodes, progress=line)
    assert f"val  {len(episodes)} of {len(episodes)} episodes" in stream.getvalue().splitlines()[-1]


def test_nothing_to_evaluate_is_a_users_error(episodes, make_env):
    with pytest.raises(UserError, match="no episode"):
        evaluate(make_env([], 2), GoalFollower(), [])
    with pytest.raises(UserError, match="share"):
        evaluate(make_env(episodes * 2, 2), GoalFollower(), episodes * 2)
