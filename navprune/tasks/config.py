"""What the task asks of an agent: what it sees, how it moves, what counts as success."""

from dataclasses import dataclass

from navprune.checks import bounded, check_fields
from navprune.errors import UserError
from navprune.scenes.recast.bodies import Body
from navprune.sensors import SENSORS


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """PointNav as Habitat's Gibson task defines it."""

    width: int = bounded(256, 1, 16384)
    """Image width in pixels."""
    height: int = bounded(256, 1, 16384)
    """Image height in pixels."""
    hfov: float = bounded(90.0, 0.1, 179.9)
    """Horizontal field of view in degrees, less than 180."""
    camera_height: float = bounded(1.25, 0, 1000)
    """Height of the camera above the agent's feet, metres."""
    agent_radius: float = bounded(0.1, 0, 10)
    """Radius of the agent's body in metres, which the navmesh must leave room for."""
    agent_height: float = bounded(1.5, 0.01, 100)
    """Height of the agent's body in metres."""
    min_depth: float = bounded(0.0, 0, 1e6)
    """Depth in metres that the depth sensor reports as 0, as it does what is nearer, and where nothing is."""
    max_depth: float = bounded(10.0, 0.01, 1e6)
    """Depth in metres that the depth sensor reports as 1, as it does what is farther."""
    sensors: tuple[str, ...] = ("depth",)
    """What the agent sees: any of those in navprune/sensors.py."""
    forward_step: float = bounded(0.25, 0.001, 1000)
    """Length of MOVE_FORWARD in metres."""
    turn_angle: float = bounded(10.0, 0.001, 360)
    """Angle of TURN_LEFT and TURN_RIGHT in degrees."""
    max_steps: int = bounded(500, 1, 1e9)
    """Time limit of an episode in steps."""
    success_distance: float = bounded(0.2, 0.001, 1e6)
    """An episode succeeds where STOP is called nearer to the goal than this (geodesic metres)."""
    success_reward: float = bounded(2.5, -1e6, 1e6)
    """Reward of success."""
    slack_reward: float = bounded(-0.01, -1e6, 1e6)
    """Reward of each step."""
    sliding: bool = True
    """Whether the agent slides along what it runs into."""
    alpha_masks: bool = False
    """Whether masked materials have holes, as glTF says; habitat-sim draws them whole."""

    def __post_init__(self) -> None:
        seen = (self.sensors,) if isinstance(self.sensors, str) else tuple(self.sensors)
        object.__setattr__(self, "sensors", seen)
        unknown = sorted(set(self.sensors) - set(SENSORS))
        if unknown:
            known = " and ".join(sorted(SENSORS))
            raise UserError(f"task.sensors knows {known}, not {', '.join(map(str, unknown))}")
        check_fields("task", self)
        if not self.min_depth < self.max_depth:
            raise UserError(f"task.min_depth is {self.min_depth:g}, not less than task.max_depth, {self.max_depth:g}")

    @property
    def body(self) -> Body:
        """Whom navmeshes must be for."""
        return Body(self.agent_radius, self.agent_height)
