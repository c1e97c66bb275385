"""One step of a policy as a module of plain tensors, from a camera's own images to logits, value and the next state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from navprune.models.policy import PointNavPolicy
from navprune.sensors import SENSORS
from navprune.tasks import GOAL

DEPTH = "depth"
OUTPUTS = "logits", "value", "next_state"


class PolicyStep(nn.Module):
    """A policy in evaluation with what its sensors do to images, for exporters; tensors alone go in and come out.

    Depth is in metres, clipped to [min_depth, max_depth] and scaled to 0 to 1 as the task's sensor does it; colours
    are bytes. The encoder's 2 x 2 averages are taken in here, too.
    """

    def __init__(self, policy: PointNavPolicy, min_depth: float, max_depth: float):
        super().__init__()
        self.policy = policy.eval()
        self.sensors = policy.spec.encoder.observations
        self.min_depth, self.max_depth = min_depth, max_depth

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs of `forward`, in order."""
        return *self.sensors, "goal", "previous_action", "mask", "state"

    def example(self, batch: int = 1) -> tuple[Tensor, ...]:
        """Inputs of the shapes and types that `forward` takes: those of a first step."""
        height, width = self.policy.spec.encoder.input[1:]
        sensors = [SENSORS[name] for name in self.sensors]
        images = [torch.zeros(batch, height, width, s.channels, dtype=getattr(torch, s.dtype)) for s in sensors]
        previous = torch.zeros(batch, dtype=torch.int64)
        return *images, torch.ones(batch, 2), previous, torch.zeros(batch), self.policy.initial_state(batch).cpu()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An image [N, H, W, C] of each sensor, goal [N, 2], previous action int64 [N], mask float32 [N], state.

        Depth is float32 in metres, colours are uint8; the goal is the distance in metres and the angle in radians, to
        the left. Mask is 0 where an episode begins, which clears the state and leaves the previous action unread, and
        1 elsewhere. Returns logits [N, A], values [N] and the state for the next step [N, L, H].
        """
        *images, goal, previous, mask, state = inputs
        features = goal[:, :0]
        if images:
            # Channels come first before anything is computed: ONNX Runtime goes through a last dimension of 1 value by
            # value, which takes six times as long.
            planes = [self._scaled(name, image.permute(0, 3, 1, 2)) for name, image in zip(self.sensors, images)]
            seen = planes[0] if len(planes) == 1 else torch.cat(planes, dim=1)
            features = self.policy.net.visual_fc(self.policy.encoder(seen))
        output = self.policy({GOAL: goal}, state, previous, mask.to(torch.int64), features)
        return output.logits, output.values, output.state

    def _scaled(self, name: str, image: Tensor) -> Tensor:
        """What a sensor of the task would tell, 0 to 1."""
        if SENSORS[name].is_bytes:
            return image / 255.0
        if name != DEPTH:
            return image
        image = image.clamp(self.min_depth, self.max_depth)
        return (image - self.min_depth if self.min_depth else image) * scale_of(self.min_depth, self.max_depth)


def scale_of(min_depth: float, max_depth: float) -> float:
    """What the depth sensor multiplies metres by; a number of float32, as there."""
    return float(np.float32(1.0 / (max_depth - min_depth)))


def metres_of(depth: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Depth in metres of what the task's sensor tells, 0 to 1, any shape, float32.

    Divided in float64 and rounded once: scaled again, what the sensor tells of Habitat's 0 to 10 metres comes back bit
    for bit, and of other ranges within one unit of the last place.
    """
    return (depth.double() / scale_of(min_depth, max_depth) + min_depth).float()
