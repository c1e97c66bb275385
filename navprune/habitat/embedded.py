"""The embedded simulator as one of habitat-lab's simulators, registered under the name `NavPruneSim-v0`."""

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import quaternion
import torch
from gym import spaces
from habitat.config.default import get_agent_config
from habitat.core.dataset import Episode
from habitat.core.registry import registry
from habitat.core.simulator import AgentState, Observations, Sensor, SensorSuite, Simulator
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig

from navprune.errors import UserError
from navprune.scenes.recast.bodies import Body
from navprune.sensors import SENSORS
from navprune.simulator.pathfinder import PathFinder
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera, Handle, MakeRenderer
from navprune.simulator.scene import Scene, load_scene
from navprune.tasks import FORWARD, LEFT, RIGHT, STOP, follower, motion

NAME = "NavPruneSim-v0"
OURS = {sensor.lab: sensor.name for sensor in SENSORS.values() if sensor.lab is not None}
"""What we call habitat-lab's sensors, by the names of their classes."""
UP, AHEAD = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])


@registry.register_simulator(name=NAME)
class EmbeddedSimulator(Simulator):
    """One agent with habitat-lab's own cameras in one scene, moved and drawn by the embedded simulator.

    Offers what habitat-lab's `HabitatSim` offers its navigation tasks. Holds the present scene only. Raises UserError
    for a sensor or an agent that it cannot give and for a scene file that is missing or broken.
    """

    make_renderer: MakeRenderer = staticmethod(partial(Rasterizer, threads=1))  # one camera gives one thread's work
    """What draws; habitat-lab makes the simulator itself, so that another one is set on the class."""

    def __init__(self, config: DictConfig) -> None:
        if len(config.agents) != 1:
            raise UserError(f"{NAME} has one agent, not {len(config.agents)}; remove the others from simulator.agents")
        sensors = [_sensor(name, settings) for name, settings in get_agent_config(config).sim_sensors.items()]
        self._suite = SensorSuite(sensors)
        groups: dict[Any, list[Sensor]] = defaultdict(list)
        for sensor in sensors:
            settings = sensor.config
            groups[settings.width, settings.height, settings.hfov, tuple(settings.position)].append(sensor)
        self._cameras = [LabCamera(group, self.make_renderer) for group in groups.values()]
        self._scene: Scene | None = None
        self._scene_key: tuple[Path, Body] | None = None
        self._collided = False
        self.seed(config.seed)
        self.reconfigure(config)

    @property
    def sensor_suite(self) -> SensorSuite:
        """The cameras."""
        return self._suite

    @property
    def action_space(self) -> spaces.Discrete:
        """0 stop, 1 forward, 2 left, 3 right."""
        return spaces.Discrete(4)

    @property
    def up_vector(self) -> NDArray[np.float64]:
        """Up, [3]."""
        return UP.copy()

    @property
    def forward_vector(self) -> NDArray[np.float64]:
        """Where an agent without rotation looks, [3]."""
        return AHEAD.copy()

    @property
    def pathfinder(self) -> "LabPathFinder":
        """habitat-sim's queries on the navmesh of the present scene."""
        return LabPathFinder(self._here.pathfinder, self._rng)

    @property
    def _here(self) -> Scene:
        assert self._scene is not None, "the simulator is closed"
        return self._scene

    @property
    def previous_step_collided(self) -> bool:
        """Whether the last step was cut short by a wall."""
        return self._collided

    # ---- life

    def seed(self, seed: int) -> None:
        """Seed the sampling of points."""
        self._rng = np.random.default_rng(seed)

    def reconfigure(self, config: DictConfig, episode: Episode | None = None) -> None:
        """Load the configured scene where it is another one and put the agent at its start."""
        self.habitat_config = config
        agent = get_agent_config(config)
        key = Path(config.scene), Body(agent.radius, agent.height)
        if self._scene is None or key != self._scene_key:
            prepare = self._cameras[0].prepare if self._cameras else Rasterizer.prepare
            self._scene, self._scene_key = load_scene(key[0], body=key[1], prepare=prepare), key
        if agent.is_set_start_state:
            self._start = np.array(agent.start_position, np.float64), _rotation(agent.start_rotation)
        else:
            self._start = np.array(self.sample_navigable_point(), np.float64), quaternion.one
        self._position, self._rotation = self._start

    def reset(self) -> Observations:
        """Put the agent at its start; the observations there."""
        self._position, self._rotation = self._start
        self._collided = False
        return self._observe()

    def step(self, action: int | None) -> Observations:
        """Act and observe; None only observes."""
        self._collided = False
        if action is not None:
            self._act(int(action))
        return self._observe()

    def step_physics(self, seconds: float) -> None:
        """Nothing moves by itself."""

    def close(self, destroy: bool = True) -> None:
        """Forget the scene and free the cameras."""
        self._scene = None
        for camera in self._cameras:
            camera.close()

    def _act(self, action: int) -> None:
        config = self.habitat_config
        start, rotation = self._pose()
        if action in (LEFT, RIGHT):
            angle = math.radians(config.turn_angle) * (1 if action == LEFT else -1)
            self._rotation = _rotation(motion.turn(rotation, angle)[0])
        elif action == FORWARD:
            target = motion.aim(start, rotation, config.forward_step_size)
            reached = self._here.pathfinder.step(start, target, config.habitat_sim_v0.allow_sliding).astype(np.float32)
            self._position = motion.settle(target, reached)[0]
            self._collided = bool(motion.collided(start, target, reached)[0])
        elif action != STOP:
            raise ValueError(f"{NAME} was given action {action}; actions are 0 to 3")

    def _pose(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Position float32 [1, 3] and rotation float32 [1, 4] as x, y, z, w."""
        rotation = quaternion.as_float_array(self._rotation)[[1, 2, 3, 0]]
        return self._position.astype(np.float32)[None], rotation.astype(np.float32)[None]

    # ---- what is seen

    def _observe(self) -> Observations:
        images: dict[str, NDArray] = {}
        for camera in self._cameras:
            images |= camera.draw(self._here.asset, self._position, self._rotation)
        return self._suite.get_observations(images)

    def render(self, mode: str = "rgb") -> NDArray:
        """What the sensor of this name sees."""
        return self._observe()[mode]

    def get_observations_at(
        self, position: ArrayLike | None = None, rotation: Any = None, keep_agent_at_new_pose: bool = False
    ) -> Observations:
        """What is seen from a pose (None: the agent's own); the agent returns unless told to stay."""
        before = self._position, self._rotation
        if position is not None and rotation is not None:
            self.set_agent_state(position, rotation)
        self._collided = False
        observations = self._observe()
        if not keep_agent_at_new_pose:
            self._position, self._rotation = before
        return observations

    # ---- where the agent is

    def get_agent_state(self, agent_id: int = 0) -> AgentState:
        """Position float32 [3], as habitat-sim keeps it, and rotation as a quaternion."""
        return AgentState(self._position.astype(np.float32), self._rotation)

    def set_agent_state(
        self, position: ArrayLike, rotation: Any, agent_id: int = 0, reset_sensors: bool = True
    ) -> bool:
        """Move the agent to a position [3] and a rotation ([x, y, z, w] or quaternion)."""
        self._position, self._rotation = np.array(position, np.float64), _rotation(rotation)
        return True

    def get_agent(self, agent_id: int = 0) -> SimpleNamespace:
        """The agent as habitat-lab's maps know it: something with a `state`."""
        return SimpleNamespace(state=self.get_agent_state(), get_state=self.get_agent_state)

    # ---- where one can go

    def geodesic_distance(self, position_a: ArrayLike, position_b: ArrayLike, episode: Episode | None = None) -> float:
        """Metres from a point to the nearest of one or several others, infinite where none can be reached.

        As in HabitatSim an episode keeps the ends of its first query and asks for them ever after.
        """
        ends = None if episode is None else episode._shortest_path_cache
        if ends is None:
            ends = np.array(position_b, np.float64).reshape(-1, 3)
        if episode is not None:
            episode._shortest_path_cache = ends
        starts = np.broadcast_to(np.asarray(position_a, np.float64), ends.shape)
        return float(self._here.pathfinder.geodesic_distance(starts, ends).min())

    def get_straight_shortest_path_points(self, position_a: ArrayLike, position_b: ArrayLike) -> list[NDArray]:
        """The corners of the shortest path, empty where there is none."""
        return list(self._here.pathfinder.find_path(np.asarray(position_a), np.asarray(position_b)).points)

    def sample_navigable_point(self) -> list[float]:
        """A point, uniform over the navigable area."""
        return self.pathfinder.get_random_navigable_point().tolist()

    def make_greedy_follower(
        self,
        agent_id: int = 0,
        goal_radius: float | None = None,
        *,
        stop_key: Any = None,
        forward_key: Any = "move_forward",
        left_key: Any = "turn_left",
        right_key: Any = "turn_right",
    ) -> "Follower":
        """What habitat-lab's ShortestPathFollower asks for actions; it stops within `goal_radius` metres of a goal.

        The radius is 0.75 of a forward step where none is given, and the keys name the actions, as in habitat-sim.
        """
        radius = 0.75 * self.habitat_config.forward_step_size if goal_radius is None else goal_radius
        able = follower.Abilities(
            radius,
            self.habitat_config.forward_step_size,
            math.radians(self.habitat_config.turn_angle),
            self.habitat_config.habitat_sim_v0.allow_sliding,
        )
        return Follower(self, able, {STOP: stop_key, FORWARD: forward_key, LEFT: left_key, RIGHT: right_key})

    def next_action_along(self, guide: follower.Follower, goal: ArrayLike) -> int:
        """The action that a follower of one agent chooses where the agent stands, towards a goal [3]."""
        return int(guide.actions(self._here.pathfinder, *self._pose(), _point(goal))[0])

    def is_navigable(self, point: ArrayLike) -> bool:
        """Whether the agent can stand there."""
        return self.pathfinder.is_navigable(point)

    def island_radius(self, position: ArrayLike) -> float:
        """Radius in metres of the connected area around a point."""
        return self.pathfinder.island_radius(position)

    def distance_to_closest_obstacle(self, position: ArrayLike, max_search_radius: float = 2.0) -> float:
        """Metres to the nearest wall, at most `max_search_radius`."""
        return self.pathfinder.distance_to_closest_obstacle(position, max_search_radius)


class Follower:
    """habitat-sim's GreedyGeodesicFollower: the same actions, but it stops where habitat-sim would raise an error."""

    def __init__(self, sim: EmbeddedSimulator, able: follower.Abilities, keys: dict[int, Any]) -> None:
        self._sim, self._guide, self._keys = sim, follower.Follower(1, able), keys
        self._goal: ArrayLike | None = None

    def next_action_along(self, goal_pos: ArrayLike) -> Any:
        """The key of the next action on the shortest path to a goal [3]."""
        if self._goal is None or not np.allclose(goal_pos, self._goal):
            self.reset()
            self._goal = goal_pos
        return self._keys[self._sim.next_action_along(self._guide, goal_pos)]

    def reset(self) -> None:
        """Forget the actions so far."""
        self._guide.reset()


class LabPathFinder:
    """habitat-sim's PathFinder over the embedded one: a point [3] at a time, float32 as there."""

    is_loaded = True

    def __init__(self, pathfinder: PathFinder, rng: np.random.Generator) -> None:
        self._pathfinder, self._rng = pathfinder, rng
        self.navigable_area = pathfinder.navigable_area

    def get_bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lowest and highest corner of the navmesh, [3] each."""
        return self._pathfinder.bounds

    def seed(self, seed: int) -> None:
        """Seed the sampling of points, as the simulator's `seed` does."""
        self._rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def get_random_navigable_point(self, max_tries: int = 10) -> NDArray[np.float32]:
        """A point, uniform over the navigable area; the first try always succeeds."""
        return self._pathfinder.sample(1, self._rng)[0].astype(np.float32)

    def snap_point(self, point: ArrayLike) -> NDArray[np.float32]:
        """The nearest point of the navmesh; NaN where none is near."""
        return self._pathfinder.snap(_point(point))[0].astype(np.float32)

    def is_navigable(self, point: ArrayLike, max_y_delta: float = 0.5) -> bool:
        """Whether a point is on the navmesh, `max_y_delta` metres of height allowed."""
        return bool(self._pathfinder.is_navigable(_point(point), max_y_delta)[0])

    def try_step(self, start: ArrayLike, end: ArrayLike) -> NDArray[np.float32]:
        """Where an agent comes that walks from start to end and slides along walls."""
        return self._pathfinder.step(_point(start), _point(end), sliding=True)[0].astype(np.float32)

    def try_step_no_sliding(self, start: ArrayLike, end: ArrayLike) -> NDArray[np.float32]:
        """Where an agent comes that walks from start to end and stops at walls."""
        return self._pathfinder.step(_point(start), _point(end), sliding=False)[0].astype(np.float32)

    def island_radius(self, point: ArrayLike) -> float:
        """Radius in metres of the connected area around a point."""
        return float(self._pathfinder.island_radius(_point(point))[0])

    def distance_to_closest_obstacle(self, point: ArrayLike, max_search_radius: float = 2.0) -> float:
        """Metres to the nearest wall, at most `max_search_radius`."""
        return float(self._pathfinder.obstacle_distance(_point(point), max_search_radius)[0])

    def get_topdown_view(self, meters_per_pixel: float, height: float, eps: float = 0.5) -> NDArray[np.bool_]:
        """Which points of a grid at this height are navigable: bool [Z, X], from the lower bound upwards.

        `eps` metres of height are allowed, as in habitat-sim's PathFinder.
        """
        lower, upper = self.get_bounds()
        columns, rows = ((upper - lower)[[0, 2]] / meters_per_pixel).astype(int)
        x, z = lower[0] + np.arange(columns) * meters_per_pixel, lower[2] + np.arange(rows) * meters_per_pixel
        grid = np.stack(np.broadcast_arrays(x, height, z[:, None]), axis=-1)
        return self._pathfinder.is_navigable(grid.reshape(-1, 3), eps).reshape(rows, columns)


class LabCamera:
    """Draws once for all sensors that share a pose and a size."""

    def __init__(self, sensors: Sequence[Sensor], make_renderer: MakeRenderer) -> None:
        settings = sensors[0].config
        self._offset = np.array(settings.position, np.float64)
        self._names = {sensor.uuid: OURS[sensor.config.type] for sensor in sensors}
        seen = tuple(dict.fromkeys(self._names.values()))
        self._camera = Camera(settings.width, settings.height, settings.hfov, seen)  # sensors clip depth
        self._renderer = make_renderer(self._camera)
        self.prepare = self._renderer.prepare

    def draw(self, asset: Handle, position: NDArray[np.float64], rotation: quaternion.quaternion) -> dict[str, NDArray]:
        """What each sensor gets, by its name: depth in metres float32 [H, W], colour uint8 [H, W, 3]."""
        eye = position + quaternion.rotate_vectors(rotation, self._offset)
        xyzw = quaternion.as_float_array(rotation)[[1, 2, 3, 0]]
        out = self._camera.images(1, self._renderer.device)
        self._renderer.draw([asset], torch.from_numpy(eye[None]), torch.from_numpy(xyzw[None]), out)
        images = {name: image[0].cpu().numpy() for name, image in out.items()}
        return {
            uuid: np.squeeze(images[name], -1) if SENSORS[name].channels == 1 else images[name]
            for uuid, name in self._names.items()
        }

    def close(self) -> None:
        """Free what draws."""
        self._renderer.close()


def _sensor(name: str, settings: DictConfig) -> Sensor:
    """habitat-lab's sensor of this configuration; UserError where the embedded simulator cannot serve it."""
    if settings.type not in OURS:
        raise UserError(f"{NAME} has no {settings.type} ({name}); it has {' and '.join(sorted(OURS))}")
    if settings.noise_model != "None" or settings.sensor_subtype != "PINHOLE" or any(settings.orientation):
        raise UserError(f"{NAME} has level pinhole cameras without noise only; change {name}")
    return registry.get_sensor(settings.type)(settings)


def _rotation(rotation: Any) -> quaternion.quaternion:
    """A quaternion from [x, y, z, w], or as it is."""
    if isinstance(rotation, quaternion.quaternion):
        return rotation
    x, y, z, w = rotation
    return quaternion.quaternion(w, x, y, z)


def _point(point: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(point, np.float64).reshape(1, 3)
