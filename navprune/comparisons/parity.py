"""How far the embedded simulator and task agree with what habitat-sim and habitat-lab answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navprune.comparisons import recordings
from navprune.comparisons.recordings import Images, Recorded, RecordedEpisode, Settings
from navprune.errors import UserError, plain
from navprune.scenes.recast.bodies import navmesh_for
from navprune.simulator.pathfinder import PathFinder
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera, MakeRenderer
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import measures, motion
from navprune.tasks.pointnav import Once, PointNavEnv, TaskConfig

TOLERANCE = 1e-3
"""Metres, radians or units of reward by which two answers may differ that agree."""
SPL_TOLERANCE = 0.01
DIGITS = 2e-6
"""Metres, and parts of a quaternion, to which poses of episodes are recorded."""
SHORTEST = 1e-3
"""Metres; the error of a shorter distance is told relative to this."""
BATCH = 8
"""Images that are drawn at once."""

REQUIRED = {
    "depth.within_2mm": {"at_least": 0.999},
    "rgb.within_2": {"at_least": 0.995},
    "geodesic.reachable_agree": {"at_least": 0.995},
    "geodesic.median": {"at_most": 1e-5},
    "geodesic.p99": {"at_most": 1e-3},
    "snap": {"at_least": 0.99},
    "navigable": {"at_least": 0.99},
    "island": {"at_least": 0.98},
    "obstacle_distance": {"at_least": 0.98},
    "step.sliding": {"at_least": 0.999},
    "step.no_sliding": {"at_least": 0.999},
    "rollouts.synchronised.position": {"at_least": 0.999},
    "rollouts.synchronised.reward": {"at_least": 0.999},
    "rollouts.synchronised.pointgoal": {"at_least": 0.999},
    "rollouts.synchronised.distance_to_goal": {"at_least": 0.999},
    "rollouts.free.spl": {"at_least": 1.0},
}
"""What every scene is to reach, by the way to the figure in its answer."""
SYNCHRONISED = ("position", "reward", "pointgoal", "distance_to_goal")


def parity(
    folder: Path,
    scenes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    renderer: MakeRenderer = Rasterizer,
) -> dict:
    """Put every recorded question to the embedded simulator and say how many answers agree.

    folder: a recording (`recordings`); `scenes` takes those scenes alone; `progress(done, total)` counts its files;
    `renderer` draws.
    Returns {"scenes": {name: figures}, "failed": [{"scene", "reason"}], "required": `REQUIRED`}: shares from 0 to 1 and
    relative errors of distances, None where there was no question; a kind of answer without a file is left out. A
    scene fails where a file of it is missing or broken. Raises UserError where there are no answers or the settings
    are broken.
    """
    settings = recordings.read_settings(folder)
    files = recordings.find_answers(folder, scenes)
    total, done = sum(map(len, files.values())), 0
    answer: dict[str, dict] = {}
    failed: list[dict[str, str]] = []
    for name, kinds in files.items():
        try:
            answer[name] = compare_scene(folder, name, kinds, settings, renderer)
        except Exception as error:  # whatever it is, the other scenes have answers, too
            failed.append({"scene": name, "reason": plain(error)})
        done += len(kinds)
        if progress:
            progress(done, total)
    return {"scenes": answer, "failed": failed, "required": REQUIRED}


def compare_scene(
    folder: Path, name: str, kinds: Mapping[str, Path], settings: Settings, renderer: MakeRenderer
) -> dict[str, Any]:
    """The figures of one scene from its files, as `recordings.find_answers` tells them; raises UserError for these."""
    figures: dict[str, Any] = {}
    path = recordings.find_scene(folder, name)
    for kind, file in kinds.items():
        if kind == "navigation":
            finder = PathFinder(navmesh_for(path, settings.task.body))
            figures |= compare_navigation(finder, recordings.read_navigation(file))
        elif kind == "rollouts":
            rollouts = recordings.read_rollouts(file, folder, name)
            figures["rollouts"] = compare_rollouts(folder, rollouts, settings.task)
        else:
            images = recordings.read_images(file, settings)
            shares = compare_images(path, images, settings, renderer)
            if kind == "images":
                figures |= shares
            else:
                figures.setdefault("cameras", {})[kind.removeprefix("cameras.")] = shares
    return figures


def shortfalls(answer: dict) -> list[str]:
    """What of an answer of `parity` misses what it is to reach, a line each; further cameras as the first one."""
    lines = []
    for scene, figures in answer["scenes"].items():
        more = {f"{scene}, {camera}": shares for camera, shares in figures.get("cameras", {}).items()}
        for name, part in {scene: figures, **more}.items():
            lines += [f"{name}: {line}" for line in _misses(part, answer["required"])]
    return lines


def _misses(figures: dict, required: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for way, bound in required.items():
        figure: Any = figures
        for key in way.split("."):
            figure = figure.get(key) if figure else None
        if figure is None or bound.get("at_least", -np.inf) <= figure <= bound.get("at_most", np.inf):
            continue
        ((words, limit),) = bound.items()
        yield f"{way} is {figure:.4g}, and is to be {words.replace('_', ' ')} {limit:g}"


def compare_images(path: Path, images: Images, settings: Settings, make_renderer: MakeRenderer) -> dict:
    """Shares of pixels whose depth agrees to 2 mm and 1 cm, and whose three colours all agree to 2 of 255.

    path: of the scene, which needs no navmesh for this.
    """
    count, height, width = images.depth.shape
    camera = Camera(width, height, images.hfov, ("depth", "rgb"))
    eyes = torch.from_numpy(images.position + motion.rotated(images.rotation, np.array(images.camera)))
    rotations, parts = torch.from_numpy(images.rotation), []
    with closing(make_renderer(camera)) as renderer:
        handle = renderer.prepare(path, settings.task.alpha_masks)
        for part in torch.arange(count).split(BATCH):
            parts.append(camera.images(len(part), renderer.device))
            renderer.draw([handle] * len(part), eyes[part], rotations[part], parts[-1])
    depth, rgb = (torch.cat([part[name] for part in parts]).cpu().numpy() for name in camera.sensors)
    error = np.abs(np.clip(depth[..., 0], *settings.depth) - images.depth)
    shares: dict = {"depth": {"within_2mm": _share(error <= 2e-3), "within_1cm": _share(error <= 1e-2)}}
    if len(images.rgb):
        difference = np.abs(rgb[: len(images.rgb)].astype(np.int16) - images.rgb)
        shares["rgb"] = {"within_2": _share(difference.max(axis=-1) <= 2)}
    return shares


def compare_navigation(finder: PathFinder, recorded: Mapping[str, Recorded]) -> dict:
    """Shares of questions to the path finder whose answers agree, and the relative errors of its distances."""
    figures: dict[str, Any] = {}
    if "geodesic" in recorded:
        figures["geodesic"] = _geodesic(finder, recorded["geodesic"])
    if "snap" in recorded:
        points, snapped, navigable = recorded["snap"].values()
        figures["snap"] = _share(_agree(finder.snap(points), snapped))
        figures["navigable"] = _share(finder.is_navigable(points) == (navigable == 1))
    if "island" in recorded:
        points, radius, distance = recorded["island"].values()
        figures["island"] = _share(_agree(finder.island_radius(points), radius))
        figures["obstacle_distance"] = _share(_agree(finder.obstacle_distance(points), distance))
    if "step" in recorded:
        starts, targets, slid, stopped = recorded["step"].values()
        figures["step"] = {
            "sliding": _share(_agree(finder.step(starts, targets), slid)),
            "no_sliding": _share(_agree(finder.step(starts, targets, sliding=False), stopped)),
        }
    return figures


def _geodesic(finder: PathFinder, recorded: Recorded) -> dict:
    starts, ends, found, expected = recorded.values()
    distance = finder.geodesic_distance(starts, ends)
    both = np.isfinite(distance) & (found == 1) & np.isfinite(expected)
    error = np.abs(distance[both] - expected[both]) / np.maximum(expected[both], SHORTEST)
    agree = _share(np.isfinite(distance) == (found == 1))
    percentiles = {"median": 50, "p99": 99, "max": 100}
    return {"reachable_agree": agree} | {
        name: float(np.percentile(error, percent)) if len(error) else None for name, percent in percentiles.items()
    }


def compare_rollouts(folder: Path, rollouts: Sequence[RecordedEpisode], task: TaskConfig) -> dict:
    """Shares of steps from the recorded state before that agree, and of whole episodes that end with the recorded SPL.

    folder: where the scenes of the episodes lie. An episode that does not fit its navmesh agrees in nothing.
    """
    steps: dict[str, list[NDArray[np.bool_]]] = {key: [] for key in SYNCHRONISED}
    spl: list[bool] = []
    task, library = replace(task, width=1, height=1), SceneLibrary()  # what is seen changes nothing that is compared
    for rollout in rollouts:
        envs = [PointNavEnv([rollout.episode], folder, Once(1), 1, task, library=library, threads=1) for _ in range(2)]
        try:
            for env in envs:
                env.reset()
        except UserError:  # the navmesh has no way for it
            agreed, right = dict.fromkeys(SYNCHRONISED, np.zeros(len(rollout.states["action"]) - 1, bool)), False
        else:
            agreed = _synchronised(envs[0], rollout)
            right = abs(_final_spl(envs[1], rollout) - rollout.states["spl"][-1]) <= SPL_TOLERANCE
        for key, agree in agreed.items():
            steps[key].append(agree)
        spl.append(right)
    shares = {key: _share(np.concatenate(agree) if agree else np.zeros(0)) for key, agree in steps.items()}
    return {"synchronised": shares, "free": {"spl": _share(np.array(spl))}}


def _synchronised(env: PointNavEnv, rollout: RecordedEpisode) -> dict[str, NDArray[np.bool_]]:
    """Which of the T steps from the recorded states agree, bool [T] for each of `SYNCHRONISED`."""
    states = rollout.states
    count = len(states["action"]) - 1
    position, pointgoal = np.empty((count, 3)), np.empty((count, 2))
    reward, distance = np.empty((2, count))
    goal = np.array([rollout.episode.goal_position])
    before = np.nan_to_num(states["distance_to_goal"], nan=np.inf)
    for t in range(count):
        env.place(0, *_unrounded(env, states["position"][t], states["rotation_xyzw"][t]), before[t])
        step = env.step(torch.tensor([int(states["action"][t + 1])]))
        ended = step.finished[0].measures if step.finished else env.running_measures(0)
        position[t], reward[t], distance[t] = env.positions[0], step.reward[0], ended["distance_to_goal"]
        pointgoal[t] = measures.goal_vectors(env.positions, env.headings, goal)[0]
    expected = {key: column[1:] for key, column in states.items()}
    turn = pointgoal[:, 1] - expected["pointgoal_with_gps_compass"][:, 1]
    pointgoal[:, 1] -= 2 * np.pi * np.round(turn / (2 * np.pi))  # -pi and pi are one direction
    return {
        "position": _agree(position, expected["position"]),
        "reward": _agree(reward, expected["reward"]),
        "pointgoal": _agree(pointgoal, expected["pointgoal_with_gps_compass"]),
        "distance_to_goal": _agree(distance, expected["distance_to_goal"]),
    }


def _unrounded(env: PointNavEnv, position: NDArray, rotation: NDArray) -> tuple[NDArray, NDArray]:
    """A recorded pose, or the one of `env` where it is the same to the digits of the record.

    At a wall, half a micrometre decides whether an agent that cannot slide comes away from it.
    """
    pose, recorded = (env.poses.positions[0], env.poses.rotations[0]), (position, rotation)
    if all(np.allclose(mine, theirs, rtol=0, atol=DIGITS) for mine, theirs in zip(pose, recorded)):
        return pose
    return recorded


def _final_spl(env: PointNavEnv, rollout: RecordedEpisode) -> float:
    """SPL of the episode replayed from its reset."""
    for action in rollout.states["action"][1:]:
        finished = env.step(torch.tensor([int(action)])).finished
        if finished:
            return finished[0].measures["spl"]
    return env.running_measures(0)["spl"]


def _agree(answers: NDArray, recorded: NDArray) -> NDArray[np.bool_]:
    """Which rows of answers [N] or [N, W] are as recorded; NaN there stands for NaN and infinity."""
    answers = np.where(np.isfinite(answers), answers, np.nan)
    same = (np.abs(answers - recorded) <= TOLERANCE) | (np.isnan(answers) & np.isnan(recorded))
    return same if same.ndim == 1 else same.all(axis=1)


def _share(agree: NDArray) -> float | None:
    return float(np.mean(agree)) if agree.size else None
