"""`navprune evaluate`: an agent over every episode of a split, a classifier over every image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from navprune.commands.environments import check_sees, environment, split_episodes
from navprune.commands.evaluate_classifier import OpenedClassifier, opened_classifier
from navprune.config import Config
from navprune.errors import UserError
from navprune.evaluation.agents import (
    Agent,
    Compared,
    FileAgent,
    GoalFollower,
    NetworkAgent,
    PolicyAgent,
    RandomAgent,
    ShortestPathAgent,
)
from navprune.evaluation.evaluate import Evaluation, Recorder, Recording, evaluate, key_of
from navprune.evaluation.exported import Exported, read_exported
from navprune.files import check_writable, json_bytes, write_file
from navprune.images.splits import TEST
from navprune.models.classifiers import ClassifierSpec
from navprune.models.encoders import Encoder
from navprune.models.policy import PointNavPolicy
from navprune.progress import ProgressLine
from navprune.reports import maps, video
from navprune.reports.kinds import AGENT, Kind
from navprune.rl.checkpoints import read_metrics
from navprune.rl.trainer import default_device
from navprune.scenes.files.episodes import Episode, check_ids
from navprune.simulator.scene import SceneLibrary
from navprune.source import CLASSIFIER, CONTROL, EXPORTED, FOLDER, SPEC_FILE, Source
from navprune.tasks.engine import VectorEnv
from navprune.tasks.orders import Once


@dataclass(frozen=True)
class Shown:
    """Pictures of one episode: its map and its video."""

    name: str
    map: Path
    video: Path


OF_THE_AGENT = ("width", "height", "hfov", "camera_height", "min_depth", "max_depth", "sensors", "alpha_masks")
"""What of a task is the agent's own, whose encoder is made for its images; the rest decides what is measured."""


SHOWN = 20
"""Differing steps that are printed; the summary has all."""


def conditions(config: Config, episodes: Sequence[Episode]) -> dict[str, Any]:
    """What the numbers of an evaluation depend on beside the agent: a digest of the episodes, and the task's settings.

    The digest is of what the episodes say and not of where they lie; their order and what nothing reads do not matter.
    """
    rows = ({**asdict(episode), "goal_radius": None, "geodesic_distance": None} for episode in episodes)
    digest = hashlib.sha256("\n".join(sorted(json.dumps(row) for row in rows)).encode()).hexdigest()
    task = {name: value for name, value in asdict(config.task).items() if name not in OF_THE_AGENT}
    return {"episodes": digest, "simulator": config.simulator, **task}


def control(name: str, config: Config, env: VectorEnv) -> Agent:
    """A control agent by name."""
    if name == "random":
        return RandomAgent(config.task)
    return GoalFollower(config.task) if name == "goal-follower" else ShortestPathAgent(env)


class Opened(NamedTuple):
    """An agent that has been read: its network or exported file, neither of a control, and what a summary tells."""

    source: Source
    policy: PointNavPolicy | None
    told: dict[str, Any]
    exported: Exported | None = None

    @property
    def kind(self) -> Kind:
        """What reports call it."""
        return AGENT

    @property
    def network(self) -> PointNavPolicy | None:
        """What was trained, where it is at hand."""
        return self.policy

    @property
    def timed(self) -> Encoder | None:
        """What costs are counted and milliseconds measured of: an encoder that sees."""
        return self.policy.encoder if self.policy and self.policy.encoder.spec.observations else None

    def conditions(self, config: Config, split: str | None) -> dict[str, Any]:
        """What the numbers of an evaluation on a split depend on beside the agent."""
        return conditions(config, split_episodes(config, split or config.data.val))

    def agent(self, config: Config, env: VectorEnv, greedy: bool) -> Agent:
        """What acts in the environments."""
        return self.acting(config, greedy) or control(self.source.text, config, env)

    def acting(self, config: Config, greedy: bool) -> NetworkAgent | None:
        """The same where it is a network."""
        if self.exported:
            return FileAgent(self.exported.step(), self.exported.spec, config.task, greedy)
        return PolicyAgent(self.policy.to(default_device()), greedy) if self.policy else None


def default_split(config: Config) -> str:
    """What is evaluated on where no split is named."""
    return TEST if config.images else config.data.val


def opened_any(source: Source, config: Config, split: str | None = None) -> Opened | OpenedClassifier:
    """Read an agent, or a classifier with the images of a split; raises UserError as either."""
    named = source.kind in (CLASSIFIER, SPEC_FILE, FOLDER) and isinstance(source.spec(config), ClassifierSpec)
    if config.images or named:
        return opened_classifier(source, config, split or default_split(config))
    return opened(source, config)


def opened(source: Source, config: Config) -> Opened:
    """Read an agent, of a run in training what is its latest now; raises UserError as `Source.policy`."""
    told: dict[str, Any] = {"agent": source.text, "checkpoint": None, "frames": None}
    if source.kind == CONTROL:
        return Opened(source, None, told)
    if source.kind == EXPORTED:
        exported = read_exported(source.path)
        check_sees(exported.spec.encoder, config)
        return Opened(source, None, told | {"frames": exported.contract["agent"]["frames"]}, exported)
    if source.kind == FOLDER:
        told |= {"checkpoint": str(source.folder), "frames": read_metrics(source.folder).get("frames")}
    policy = source.policy(config)
    check_sees(policy.spec.encoder, config)
    return Opened(source, policy, told)


def run_evaluation(
    source: str | Opened,
    config: Config,
    *,
    split: str | None = None,
    limit: int | None = None,
    environments: int = 16,
    greedy: bool = False,
    seed: int = 0,
    out: Path | None = None,
    pictures: str = "0",
    library: SceneLibrary | None = None,
    against: Opened | None = None,
) -> tuple[Evaluation, list[Shown]]:
    """Run an agent over every episode of a split (or the first `limit`).

    With `out` it writes summary.json, episodes.jsonl and, for the episodes that `pictures` chooses, a map and a video.
    `against` is another network; where it would have acted otherwise stands in the result and the summary.
    """
    given = source if isinstance(source, Opened) else opened(Source.parse(source), config)
    split = split or config.data.val
    episodes = split_episodes(config, split)[:limit]
    check_ids(episodes, split)
    if config.env == "habitat":  # Each is a process with its own copy of the scene.
        environments = min(environments, config.environments, len(episodes))
    env = environment(config, split, episodes, Once(len(episodes)), environments, library)
    recorder = Recorder([key_of(episode) for episode in chosen_episodes(episodes, pictures)])
    try:
        if out:
            check_writable(out)
        agent = given.agent(config, env, greedy)
        if against:
            agent = compared(agent, against, config, env, greedy)
        line = ProgressLine(f"evaluating {given.source.place.name}", len(episodes), "episodes")
        result = evaluate(env, agent, episodes, seed, recorder, line)
        if isinstance(agent, Compared):
            result = replace(result, against=agent.to_json())
    finally:
        env.close()
    if out is None:
        return result, []
    how = {"greedy": greedy, "seed": seed, "conditions": conditions(config, episodes)}
    write_file(out / "summary.json", json_bytes(result.to_json(split) | given.told | how))
    result.write_episodes(out / "episodes.jsonl")
    return result, [show(recording, out) for recording in recorder.recordings.values()]


def compared(agent: Agent, against: Opened, config: Config, env: VectorEnv, greedy: bool) -> Compared:
    """An agent beside another one; raises UserError where one of them is no network."""
    reference = against.acting(config, greedy)
    if not isinstance(agent, NetworkAgent) or reference is None:
        raise UserError("--against compares two networks; give checkpoints or exported policies, no control")
    return Compared(agent, reference, env)


def difference(found: Mapping[str, Any], name: str) -> str:
    """What `Compared.to_json` tells, in words: a line, and one for each of the first steps that differ."""
    steps, away = found["differing"], found["largest_deviation"]
    lines = [f"{len(steps)} of {found['steps']} steps differ from {name}; logits by at most {away:.2g}"]
    for step in steps[:SHOWN]:
        place = f"{step['scene']} {step['episode_id']}, step {step['step']}"
        lines.append(f"  {place}: {step['action']} instead of {step['reference']}, {step['margin']:.2g} from a tie")
    return "\n".join([*lines, *["  ..."] * (len(steps) > SHOWN)])


def chosen_episodes(episodes: Sequence[Episode], pictures: str) -> list[Episode]:
    """So many episodes spread over the split ("3"), or those named SCENE:ID ("duplex:4,duplex:7"); UserError else."""
    if pictures.isdecimal():
        count = min(int(pictures), len(episodes))
        return [episodes[i] for i in np.linspace(0, len(episodes) - 1, count).round().astype(int)]
    named = {f"{Path(episode.scene_id).stem}:{episode.episode_id}": episode for episode in episodes}
    for name in pictures.split(","):
        if name not in named:
            raise UserError(
                f"--pictures: no episode is called {name}; give a number or SCENE:ID, such as {next(iter(named))}"
            )
    return [named[name] for name in pictures.split(",")]


def show(recording: Recording, folder: Path) -> Shown:
    """Write the top-down map and the video of one recorded episode into a folder."""
    name = f"{Path(recording.episode.scene_id).stem}_{recording.episode.episode_id}"
    map_file = folder / f"{name}_map.png"
    maps.episode_map(recording).save(map_file)
    return Shown(name, map_file, video.write_video(folder / f"{name}.mp4", recording))
