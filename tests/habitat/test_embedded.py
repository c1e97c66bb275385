"""habitat-lab's own environment on the embedded simulator: as habitat-sim recorded it, and as our task computes it."""

import dataclasses
import gzip
import json
import shutil
from importlib.util import find_spec

import layouts
import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes, scene_name
from navprune.scenes.homes.dataset import generate_dataset
from navprune.tasks import FORWARD, GOAL, LEFT, RIGHT, STOP
from navprune.tasks.pointnav import Once, PointNavEnv, TaskConfig

pytest.importorskip("quaternion", reason="habitat-lab, which brings numpy-quaternion, is not installed")

import navprune.habitat  # noqa: I001  (first, so that habitat-lab imports)
import habitat
import quaternion
from habitat.config import default_structured_configs as lab_configs
from habitat.datasets.pointnav.pointnav_generator import generate_pointnav_episode
from habitat.tasks.nav.shortest_path_follower import ShortestPathFollower

from navprune.config import DataConfig
from navprune.habitat import lab_config
from navprune.habitat.vector import HabitatEnv

SMALL = TaskConfig(width=16, height=16)
BOTH = TaskConfig(width=64, height=64, sensors=("depth", "rgb"))
UNUSUAL = TaskConfig(
    width=48,
    height=32,
    hfov=60.0,
    camera_height=0.9,
    min_depth=0.5,
    max_depth=4.0,
    sensors=("depth", "rgb"),
    forward_step=0.4,
    turn_angle=30.0,
    max_steps=25,
    success_distance=0.6,
    success_reward=10.0,
    slack_reward=-0.1,
    sliding=False,
)


def expected(reference, scene, what):
    folder = f"{reference.folder}/expected/{scene}_{what}"
    if what == "navigation":
        with open(f"{folder}.json") as file:
            return json.load(file)
    with gzip.open(f"{folder}.json.gz", "rt") as file:
        return {rollout["episode_id"]: rollout["steps"] for rollout in json.load(file)}


def begin(env, scene, number):
    """Resets habitat-lab's environment to the episode of this number in a scene."""
    env.habitat_env.current_episode = next(
        e for e in env.episodes if e.episode_id == str(number) and e.scene_id.endswith(f"{scene}.glb")
    )
    return env.reset()


def agreement(step, observations, reward, position, info):
    """Whether what a step gave is what was recorded of it, by kind."""
    depth = observations["depth"][:, :, 0]
    probes = np.abs(depth[32::64, 32::64].ravel() - step["depth_probe"]) < 2e-4
    return [
        np.allclose(position, step["position"], atol=1e-3),
        reward is None or abs(reward - step["reward"]) < 1e-3,
        np.allclose(observations[GOAL], step["pointgoal_with_gps_compass"], atol=1e-3),
        *(abs(info[name] - step[name]) < 1e-3 for name in ("distance_to_goal", "success", "spl", "soft_spl")),
        info["collisions"]["count"] == step["collisions"],
        probes.mean() > 0.9 and abs(depth.mean() - step["depth_mean"]) < 1e-3,
    ]


@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_replays_what_habitat_sim_recorded(make_lab, reference, scene):
    env, agree, spl = make_lab(TaskConfig()), [], []
    for number, steps in expected(reference, scene, "rollouts").items():
        observations, reward, done, info = begin(env, scene, number), None, False, env.habitat_env.get_metrics()
        for step in steps:
            if step["action"] is not None:
                assert not done
                observations, reward, done, info = env.step(action=step["action"])
            position = env.habitat_env.sim.get_agent_state().position
            agree.append(agreement(step, observations, reward, position, info))
        spl.append(abs(info["spl"] - steps[-1]["spl"]) < 0.01)
    shares = np.mean(agree, axis=0)
    assert len(agree) > 800
    assert np.mean(spl) >= 0.95, f"episodes with the recorded SPL: {np.mean(spl):.3f}"
    assert (shares >= 0.99).all(), f"shares of steps that agree: {shares}"


def both_tasks(make_lab, reference, task, numbers):
    """habitat-lab's environment and ours over the same episodes of both scenes, in the same order."""
    ours = [e for e in read_episodes(reference.folder, "reference", "val") if int(e.episode_id) in numbers]
    env = PointNavEnv(ours, reference.folder, Once(len(ours)), 1, task, threads=1)
    return make_lab(task), env, [(e.scene_id.split("/")[-1][:-4], e.episode_id) for e in ours]


@pytest.mark.parametrize(
    ("task", "noise", "met"),
    [
        (BOTH, 0.1, {"moved", "collided", "succeeded"}),
        (BOTH, 0.9, {"moved", "collided"}),
        (UNUSUAL, 0.4, {"moved", "collided", "succeeded", "timed out"}),
    ],
)
def test_gives_what_our_task_gives(make_lab, reference, task, noise, met):
    lab, ours, episodes = both_tasks(make_lab, reference, task, range(8))
    rng, steps, kinds = np.random.default_rng(7), 0, set()
    theirs, here = None, ours.reset()
    for scene, number in episodes:
        theirs, done = begin(lab, scene, number), False
        check_observations(theirs, {key: value[0].numpy() for key, value in here.items()})
        while not done:
            wandering = rng.choice([FORWARD, LEFT, RIGHT, STOP], p=[0.79, 0.1, 0.1, 0.01])
            action = int(wandering) if rng.random() < noise else int(ours.expert_actions()[0])
            theirs, reward, done, info = lab.step(action=action)
            answer = ours.step(torch.tensor([action]))
            here, ended = answer.observations, answer.finished
            measures = ended[0].measures if ended else ours.running_measures(0)
            assert reward == pytest.approx(float(answer.reward[0]), abs=1e-5)
            assert done == bool(answer.terminated[0] or answer.truncated[0])
            for name in ("distance_to_goal", "success", "spl", "soft_spl"):
                assert info[name] == pytest.approx(measures[name], abs=1e-5), name
            assert info["collisions"]["count"] == measures["collisions"]
            if answer.truncated[0]:
                check_observations(theirs, {key: value[0].numpy() for key, value in answer.final_observations.items()})
            elif not done:
                check_observations(theirs, {key: value[0].numpy() for key, value in here.items()})
            steps += 1
            facts = {
                "moved": reward > 0,
                "collided": info["collisions"]["is_collision"],
                "succeeded": info["success"],
                "timed out": answer.truncated[0],
            }
            kinds |= {kind for kind, happened in facts.items() if happened}
    assert not ours.active[0]
    assert steps >= 250 and kinds >= met, (steps, kinds)


def check_observations(theirs, ours):
    assert theirs.keys() == ours.keys()
    np.testing.assert_allclose(theirs[GOAL], ours[GOAL], atol=2e-5)
    np.testing.assert_allclose(theirs["depth"], ours["depth"], atol=1e-5)
    np.testing.assert_array_equal(theirs["rgb"], ours["rgb"])
    for key in ours:
        assert theirs[key].dtype == ours[key].dtype and theirs[key].shape == ours[key].shape


def test_observations_lie_in_habitat_labs_spaces(make_lab):
    env = make_lab(BOTH)
    observations = env.reset()
    assert env.observation_space.contains(dict(observations))
    assert env.action_space.n == 4 and env.habitat_env.sim.action_space.n == 4


def test_habitat_labs_data_set_reads_generated_homes(make_lab, tmp_path):
    generate_dataset(
        tmp_path,
        train=1,
        val=1,
        seed=5,
        area=(40.0, 60.0),
        episodes_per_scene=20,
        val_episodes_per_scene=5,
        workers=1,
    )
    env = make_lab(SMALL, data=DataConfig(folder=str(tmp_path)), split="train")
    ours = read_episodes(tmp_path, "homes", "train")
    assert len(env.episodes) == len(ours) == 20
    for theirs, episode in zip(env.episodes, ours):
        assert theirs.episode_id == episode.episode_id
        assert theirs.scene_id == str(tmp_path / "scene_datasets" / episode.scene_id)
        assert tuple(theirs.start_position) == episode.start_position
        assert tuple(theirs.start_rotation) == episode.start_rotation
        assert tuple(theirs.goals[0].position) == episode.goal_position
    for episode in ours[:3]:
        env.reset()
        assert env.habitat_env.get_metrics()["distance_to_goal"] == pytest.approx(episode.geodesic_distance, rel=1e-3)


@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_answers_habitat_sims_recorded_queries(make_lab, reference, scene):
    env = make_lab(SMALL)
    begin(env, scene, 0)
    sim, recorded = env.habitat_env.sim, expected(reference, scene, "navigation")
    finder = sim.pathfinder
    assert finder.is_loaded and finder.navigable_area == pytest.approx(recorded["navigable_area"], rel=1e-5)
    for entry in recorded["step"][:50]:
        steps = finder.try_step, finder.try_step_no_sliding
        for step, name in zip(steps, ("sliding", "no_sliding")):
            np.testing.assert_allclose(step(entry["start"], entry["target"]), entry[name], atol=2e-3)
    for entry in recorded["snap"][:50]:
        snapped = [np.nan if x is None else x for x in entry["snapped"] or [None] * 3]
        np.testing.assert_allclose(finder.snap_point(entry["point"]), snapped, atol=1e-3)
        assert sim.is_navigable(entry["point"]) == entry["navigable"]
    for entry in recorded["island"][:50]:
        assert sim.island_radius(entry["point"]) == pytest.approx(entry["radius"], rel=1e-3)
        distance = sim.distance_to_closest_obstacle(entry["point"])
        assert distance == pytest.approx(entry["obstacle_distance"], abs=1e-2)
    for entry in [entry for entry in recorded["geodesic"] if entry["found"]][:50]:
        points = sim.get_straight_shortest_path_points(entry["start"], entry["end"])
        np.testing.assert_allclose(points, entry["points"], atol=1e-3)
        assert sim.geodesic_distance(entry["start"], entry["end"]) == pytest.approx(entry["distance"], rel=1e-4)


def test_distance_is_to_the_nearest_of_several_goals_and_an_episode_keeps_its_goals(make_lab, reference):
    env = make_lab(SMALL)
    begin(env, "apartment", 0)
    sim, episode = env.habitat_env.sim, env.episodes[1]
    pairs = [entry for entry in expected(reference, "apartment", "navigation")["geodesic"] if entry["found"]][:5]
    start, ends = pairs[0]["start"], [pair["end"] for pair in pairs]
    alone = [sim.geodesic_distance(start, end) for end in ends]
    assert sim.geodesic_distance(start, ends) == min(alone)
    assert sim.geodesic_distance(start, [[99.0, 99.0, 99.0]]) == np.inf
    assert sim.geodesic_distance(start, ends[0], episode) == alone[0]
    assert sim.geodesic_distance(start, ends[1], episode) == alone[0], "HabitatSim ignores later goals"


def same_pose(one, other):
    return (one.position == other.position).all() and one.rotation == other.rotation


def test_looking_elsewhere_brings_the_agent_back(make_lab):
    env = make_lab(BOTH)
    begin(env, "duplex", 1)
    sim, goal = env.habitat_env.sim, env.habitat_env.current_episode.goals[0].position
    before = sim.get_agent_state()
    there = sim.get_observations_at(goal, [0.0, 1.0, 0.0, 0.0])
    assert same_pose(sim.get_agent_state(), before)
    sim.get_observations_at(goal, [0.0, 1.0, 0.0, 0.0], keep_agent_at_new_pose=True)
    state = sim.get_agent_state()
    np.testing.assert_allclose(state.position, goal, atol=1e-6)
    assert state.rotation == quaternion.quaternion(0.0, 0.0, 1.0, 0.0)
    np.testing.assert_array_equal(sim.render("rgb"), there["rgb"])
    assert sim.set_agent_state(before.position, before.rotation)
    assert same_pose(sim.get_agent_state(), before)


def test_habitat_labs_other_sensors_and_its_map_work(make_lab):
    def add(lab):
        lab.task.lab_sensors.gps = lab_configs.GPSSensorConfig()
        lab.task.lab_sensors.compass = lab_configs.CompassSensorConfig()
        lab.task.lab_sensors.heading = lab_configs.HeadingSensorConfig()
        lab.task.lab_sensors.proximity = lab_configs.ProximitySensorConfig()
        lab.task.lab_sensors.image = lab_configs.ImageGoalSensorConfig()
        lab.task.measurements.map = lab_configs.TopDownMapMeasurementConfig(map_resolution=256)

    env = make_lab(BOTH, add)
    seen = begin(env, "apartment", 3)
    assert seen["imagegoal"].shape == (64, 64, 3) and seen["imagegoal"].any()
    np.testing.assert_allclose([*seen["gps"], *seen["compass"]], 0, atol=1e-5)
    for _ in range(3):
        seen, *_ = env.step(action=LEFT)
    assert seen["compass"] == pytest.approx(np.radians(30), abs=1e-5)
    seen, _, _, info = env.step(action=FORWARD)
    sim = env.habitat_env.sim
    moved = np.linalg.norm(sim.get_agent_state().position - env.habitat_env.current_episode.start_position)
    assert np.hypot(*seen["gps"]) == pytest.approx(moved, abs=1e-4)
    assert seen["proximity"] == pytest.approx(sim.distance_to_closest_obstacle(sim.get_agent_state().position))
    drawn = info["top_down_map"]["map"]
    metres = habitat.utils.visualizations.maps.calculate_meters_per_pixel(256, sim=sim)
    assert (drawn > 0).sum() * metres**2 == pytest.approx(sim.pathfinder.navigable_area, rel=0.02)
    assert drawn[tuple(info["top_down_map"]["agent_map_coord"][0])] > 0


def test_points_are_drawn_from_the_seed(make_lab):
    sim = make_lab(SMALL).habitat_env.sim
    sim.seed(3)
    points = [sim.sample_navigable_point() for _ in range(20)]
    sim.seed(3)
    assert points == [sim.sample_navigable_point() for _ in range(20)]
    assert all(sim.is_navigable(point) for point in points) and len({tuple(point) for point in points}) == 20

    sim.pathfinder.seed(3)
    assert points == [sim.pathfinder.get_random_navigable_point(max_tries=3).tolist() for _ in range(20)]


@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_habitat_labs_shortest_path_follower_takes_the_recorded_actions(make_lab, reference, scene):
    lab = make_lab(SMALL)
    follower, followed = ShortestPathFollower(lab.habitat_env.sim, SMALL.success_distance, return_one_hot=False), 0
    for number, steps in list(expected(reference, scene, "rollouts").items())[::4]:  # the follower's own
        begin(lab, scene, number)
        goal = lab.habitat_env.current_episode.goals[0].position
        for step in steps[1:]:
            assert follower.get_next_action(goal) == step["action"]
            *_, done, info = lab.step(action=step["action"])
            followed += 1
        assert done and info["spl"] == pytest.approx(steps[-1]["spl"], abs=1e-5)
    assert followed > 100
    assert follower.get_next_action([99.0, 99.0, 99.0]) == STOP, "no path"


def test_a_follower_gives_the_keys_of_the_actions(make_lab):
    env = make_lab(SMALL)
    begin(env, "duplex", 0)
    sim, goal = env.habitat_env.sim, env.habitat_env.current_episode.goals[0].position
    follower = sim.make_greedy_follower()
    assert follower.next_action_along(goal) in ("move_forward", "turn_left", "turn_right")
    sim.set_agent_state(goal, [0.0, 0.0, 0.0, 1.0])
    assert follower.next_action_along(goal) is None
    assert sim.make_greedy_follower(stop_key="stop").next_action_along(goal) == "stop"


def test_habitat_labs_generator_makes_episodes_whose_paths_lead_to_the_goal(make_lab):
    sim = make_lab(SMALL).habitat_env.sim
    for episode in generate_pointnav_episode(sim, 3):
        start, goal = episode.start_position, episode.goals[0].position
        assert episode.info["geodesic_distance"] == pytest.approx(sim.geodesic_distance(start, goal), rel=1e-6)
        sim.set_agent_state(start, episode.start_rotation)
        for point in episode.shortest_paths[0]:
            np.testing.assert_allclose(sim.get_agent_state().position, point.position, atol=1e-6)
            sim.step(point.action)
        assert sim.geodesic_distance(sim.get_agent_state().position, goal) < 0.2


def test_an_agent_without_a_start_stands_somewhere(make_lab):
    config = make_lab(SMALL).habitat_env.sim.habitat_config.copy()
    with habitat.read_write(config):
        config.agents.main_agent.is_set_start_state = False
    sim = navprune.habitat.EmbeddedSimulator(config)
    assert sim.reset()["depth"].any() and sim.is_navigable(sim.get_agent_state().position)


def noisy(lab):
    lab.simulator.agents.main_agent.sim_sensors.depth_sensor.noise_model = "RedwoodDepthNoiseModel"


def semantic(lab):
    settings = lab_configs.HabitatSimSemanticSensorConfig()
    lab.simulator.agents.main_agent.sim_sensors.semantic = settings


def two_agents(lab):
    lab.simulator.agents.other = lab.simulator.agents.main_agent
    lab.simulator.agents_order = ["main_agent", "other"]


@pytest.mark.parametrize(
    ("change", "said"),
    [(noisy, "without noise.*depth_sensor"), (semantic, "no HabitatSimSemanticSensor"), (two_agents, "one agent")],
)
def test_what_it_cannot_give_is_said(make_lab, change, said):
    with pytest.raises(UserError, match=said):
        make_lab(SMALL, change)


def test_a_scene_without_navmesh_is_named(make_lab, reference):
    sim = make_lab(SMALL).habitat_env.sim
    config = sim.habitat_config.copy()
    with habitat.read_write(config):
        config.scene = config.scene.replace("duplex", "nowhere").replace("apartment", "nowhere")
    with pytest.raises(UserError, match=r"nowhere\.glb does not exist"):
        sim.reconfigure(config)


def test_the_body_is_the_tasks_on_every_path(make_lab, reference, tmp_path):
    shutil.copytree(f"{reference.folder}/scene_datasets", tmp_path / "scene_datasets")
    shutil.copytree(f"{reference.folder}/datasets", tmp_path / "datasets")
    data = dataclasses.replace(reference, folder=str(tmp_path), scenes=("duplex",))
    task = dataclasses.replace(SMALL, agent_radius=0.18, agent_height=0.88)
    episodes = read_episodes(tmp_path, "reference", "val", scenes=["duplex"])[:1]
    areas = []
    for body in (task, SMALL):
        lab = make_lab(body, data=data)
        agent = lab.habitat_env.sim.habitat_config.agents.main_agent
        assert (agent.radius, agent.height) == body.body
        lab.reset()
        ours = PointNavEnv(episodes, tmp_path, Once(1), 1, body, threads=1)
        ours.reset()
        workers = HabitatEnv(episodes, data, "val", Once(1), 1, body)
        workers._assign(0, 0)
        found = lab.habitat_env.sim.pathfinder, ours.scene(0).pathfinder, workers.scene(0).pathfinder
        areas.append({finder.navigable_area for finder in found})
    assert len(areas[0]) == len(areas[1]) == 1 and areas[0] != areas[1]


def test_hm3ds_other_name_stands_for_the_one_that_episodes_say(make_lab, reference, tmp_path):
    layouts.put_scene(tmp_path, "duplex", "hm3d/val/00800-ID/ID.glb")
    entries = layouts.entries("duplex", "hm3d/val/00800-ID/ID.basis.glb", count=2)
    layouts.put_episodes(tmp_path, "hm3d/v1", "val", [], {"ID": entries})
    lab = make_lab(SMALL, data=dataclasses.replace(reference, folder=str(tmp_path), name="hm3d"))
    assert np.isfinite(lab.reset()["depth"]).all()


def test_unknown_actions_are_refused(make_lab):
    sim = make_lab(SMALL).habitat_env.sim
    with pytest.raises(ValueError, match="action 4"):
        sim.step(4)


def test_settings_that_habitat_lab_cannot_take_are_named(reference):
    for task in (TaskConfig(turn_angle=7.5), TaskConfig(hfov=79.5)):
        with pytest.raises(UserError, match=r"whole degrees for task\.(turn_angle|hfov), not 7"):
            lab_config(task, reference, "val")
    with pytest.raises(UserError, match="simulator knows embedded and habitat_sim, not gazebo"):
        lab_config(TaskConfig(), reference, "val", simulator="gazebo")


def test_without_habitat_sim_its_simulator_is_refused_at_once_and_fails_clearly_later(make_lab, reference):
    if find_spec("habitat_sim") is not None:
        pytest.skip("habitat-sim is installed")
    with pytest.raises(UserError, match=r"habitat-sim is not installed.*simulator=embedded"):
        lab_config(TaskConfig(), reference, "val", simulator="habitat_sim")
    with pytest.raises(UserError, match=r"habitat-sim is not installed.*simulator=embedded"):
        make_lab(SMALL, lambda lab: lab.simulator.update({"type": "Sim-v0"}))


def test_only_the_chosen_scenes_are_read(make_lab, reference):
    lab = make_lab(SMALL, data=dataclasses.replace(reference, scenes=("duplex",)))
    assert {scene_name(episode.scene_id) for episode in lab.episodes} == {"duplex"}
    ours = read_episodes(reference.folder, "reference", "val", scenes=["duplex"])
    assert [episode.episode_id for episode in lab.episodes] == [episode.episode_id for episode in ours]


def test_braces_in_a_folders_name_are_taken_literally(tmp_path):
    data = DataConfig(folder=str(tmp_path / "{homes}"))
    path = lab_config(TaskConfig(), data, "val").habitat.dataset.data_path.format(split="val")
    assert path == str(tmp_path / "{homes}/datasets/pointnav/homes/v1/val/val.json.gz")


def test_what_habitat_lab_would_interpolate_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read \$\{ in data\.folder"):
        lab_config(TaskConfig(), DataConfig(folder=str(tmp_path / "${homes}")), "val")


@pytest.mark.parametrize("place", ["Jürgen", "my code (v2)", "a=b, c", "#1"])
def test_scenes_may_stand_in_any_folder(place, make_lab, reference, tmp_path):
    (tmp_path / place).symlink_to(reference.folder)
    lab = make_lab(SMALL, data=dataclasses.replace(reference, folder=str(tmp_path / place)))
    assert lab.reset()["depth"].shape == (*lab.observation_space["depth"].shape,)
