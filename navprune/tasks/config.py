"""What the task asks of an agent: what it sees, how it moves, what counts as success."""

from dataclasses import dataclass
from numbers import Integral, Real

from navprune.errors import UserError
from navprune.scenes.recast.bodies import Body

LIMITS = {
    "width": (1, 16384),
    "height": (1, 16384),
    "hfov": (0.1, 179.9),
    "camera_height": (0, 1000),
    "agent_radius": (0, 10),
    "agent_height": (0.01, 100),
    "max_depth": (0.01, 1e6),
    "forward_step": (0.001, 1000),
    "turn_angle": (0.001, 360),
    "max_steps": (1, 1e9),
    "success_distance": (0.001, 1e6),
    "success_reward": (-1e6, 1e6),
    "slack_reward": (-1e6, 1e6),
}
"""The least and the most that numbers of `TaskConfig` may be."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """PointNav as Habitat's Gibson task defines it."""

    width: int = 256
    """Image width in pixels."""
    height: int = 256
    """Image height in pixels."""
    hfov: float = 90.0
    """Horizontal field of view in degrees, less than 180."""
    camera_height: float = 1.25
    """Height of the camera above the agent's feet, metres."""
    agent_radius: float = 0.1
    """Radius of the agent's body in metres, which the navmesh must leave room for."""
    agent_height: float = 1.5
    """Height of the agent's body in metres."""
    max_depth: float = 10.0
    """Depth in metres that the depth sensor reports as 1."""
    sensors: tuple[str, ...] = ("depth",)
    """What the agent sees: any of depth and rgb."""
    forward_step: float = 0.25
    """Length of MOVE_FORWARD in metres."""
    turn_angle: float = 10.0
    """Angle of TURN_LEFT and TURN_RIGHT in degrees."""
    max_steps: int = 500
    """Time limit of an episode in steps."""
    success_distance: float = 0.2
    """An episode succeeds where STOP is called nearer to the goal than this (geodesic metres)."""
    success_reward: float = 2.5
    """Reward of success."""
    slack_reward: float = -0.01
    """Reward of each step."""
    sliding: bool = True
    """Whether the agent slides along what it runs into."""
    alpha_masks: bool = False
    """Whether masked materials have holes, as glTF says; habitat-sim draws them whole."""

    def __post_init__(self) -> None:
        seen = (self.sensors,) if isinstance(self.sensors, str) else tuple(self.sensors)
        object.__setattr__(self, "sensors", seen)
        unknown = sorted(set(self.sensors) - {"depth", "rgb"})
        if unknown:
            raise UserError(f"task.sensors knows depth and rgb, not {', '.join(map(str, unknown))}")
        for name, (least, most) in LIMITS.items():
            value, whole = getattr(self, name), isinstance(getattr(TaskConfig, name), int)
            if not isinstance(value, Integral if whole else Real) or not least <= float(value) <= most:
                kind = "whole number" if whole else "number"
                raise UserError(f"task.{name} must be a {kind} from {least:g} to {most:g}, not {value}")

    @property
    def body(self) -> Body:
        """Whom navmeshes must be for."""
        return Body(self.agent_radius, self.agent_height)
