"""habitat-lab's own configuration for this project's task and data, and the environment made from it."""

from pathlib import Path
from typing import TYPE_CHECKING

from habitat import RLEnv, get_config, read_write
from habitat.config.default_structured_configs import CollisionsMeasurementConfig, SoftSPLMeasurementConfig
from habitat.core.environments import RLTaskEnv
from habitat.utils.env_utils import make_env_fn
from omegaconf import DictConfig

from navprune.errors import UserError
from navprune.habitat import embedded
from navprune.habitat.devices import check_habitat_sim
from navprune.scenes.files.episodes import split_folder
from navprune.sensors import SENSORS
from navprune.tasks.config import TaskConfig

if TYPE_CHECKING:
    from navprune.config import DataConfig

SIMULATORS = {"embedded": embedded.NAME, "habitat_sim": "Sim-v0"}
TASK = "benchmark/nav/pointnav/pointnav_gibson.yaml"


def lab_config(
    task: TaskConfig, data: "DataConfig", split: str, simulator: str = "embedded", gpu: int | None = None, seed: int = 0
) -> DictConfig:
    """habitat-lab's `pointnav_gibson` with the values of a task, for one split of a data set.

    simulator: embedded or habitat_sim; gpu: the device that habitat_sim draws on, -1 for the CPU, None for
    habitat-lab's choice. Raises UserError for a simulator that is unknown or not installed and for values that
    habitat-lab cannot take.
    """
    if simulator not in SIMULATORS:
        raise UserError(f"simulator knows {' and '.join(SIMULATORS)}, not {simulator}")
    if simulator == "habitat_sim":
        check_habitat_sim()
    if "${" in data.folder:
        raise UserError(f"habitat-lab cannot read ${{ in data.folder, {data.folder}; set a link of another name to it")
    config = get_config(TASK)
    with read_write(config):
        lab = config.habitat
        lab.seed = seed
        lab.environment.max_episode_steps = task.max_steps
        lab.simulator.type = SIMULATORS[simulator]
        lab.simulator.forward_step_size = task.forward_step
        lab.simulator.turn_angle = _whole("turn_angle", task.turn_angle)
        lab.simulator.habitat_sim_v0.allow_sliding = task.sliding
        if gpu is not None:
            lab.simulator.habitat_sim_v0.gpu_device_id = gpu
        agent = lab.simulator.agents.main_agent
        agent.radius, agent.height = task.body
        _set_sensors(agent.sim_sensors, task)
        lab.task.success_reward = task.success_reward
        lab.task.slack_reward = task.slack_reward
        lab.task.measurements.success.success_distance = task.success_distance
        lab.task.measurements.soft_spl = SoftSPLMeasurementConfig()
        lab.task.measurements.collisions = CollisionsMeasurementConfig()
        lab.dataset.split = split
        lab.dataset.scenes_dir = str(Path(data.folder) / "scene_datasets")
        # habitat-lab fills in the split, so braces that stand in the folder's own name are doubled.
        folder = data.folder.replace("{", "{{").replace("}", "}}")
        lab.dataset.data_path = str(split_folder(folder, data.name, "{split}", data.version) / "{split}.json.gz")
        if data.scenes is not None:
            lab.dataset.content_scenes = list(data.scenes)
    return config


def make_env(config: DictConfig) -> RLEnv:
    """habitat-lab's `RLTaskEnv`, seeded: `step` gives observations, reward, done and measures."""
    return make_env_fn(config, RLTaskEnv)


def _set_sensors(sensors: DictConfig, task: TaskConfig) -> None:
    for sensor in SENSORS.values():
        if sensor.lab is None and sensor.name in task.sensors:
            raise UserError(f"habitat-lab has no sensor {sensor.name}; use env=embedded, or leave it out")
        if sensor.lab is not None and sensor.name not in task.sensors:
            del sensors[f"{sensor.name}_sensor"]
    for settings in sensors.values():
        settings.width, settings.height = task.width, task.height
        settings.hfov = _whole("hfov", task.hfov)
        settings.position = [0.0, task.camera_height, 0.0]
        if "max_depth" in settings:
            settings.min_depth, settings.max_depth = task.min_depth, task.max_depth


def _whole(name: str, degrees: float) -> int:
    """habitat-lab keeps these angles as whole numbers."""
    if degrees != int(degrees):
        raise UserError(f"habitat-lab takes whole degrees for task.{name}, not {degrees}")
    return int(degrees)
