"""Run an exported policy where only numpy and onnxruntime are: read the file and its contract, check the camera, step.

    python examples/robot.py agent.onnx

It drives a robot that is imagined in an empty room; docs/deployment.md says what to put in its place.
"""

import hashlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

STOP, FORWARD, LEFT, RIGHT = range(4)


class Policy:
    """An exported policy with what it remembers. `camera` says what the robot has, in the contract's own words."""

    def __init__(self, file: Path, camera: dict | None = None, seed: int | None = None, greedy: bool = False):
        place = file.with_name(file.name + ".policy_contract.json")
        self.contract = json.loads(place.read_text()) if place.is_file() else sys.exit(f"no policy: {place} is missing")
        graph = file.read_bytes()
        if self.contract["files"].get(file.name) != hashlib.sha256(graph).hexdigest():
            raise SystemExit(f"{file} is not the file that its contract was written for; export it again")
        told = self.contract["camera"]
        for name, value in (camera or {}).items():
            wanted = told.get(name, f"no such thing; the contract has {', '.join(told)}")
            if not (np.allclose(value, wanted, rtol=0.02) if isinstance(wanted, int | float) else value == wanted):
                raise SystemExit(f"the camera's {name} is {value}, and the policy was trained with {wanted}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a step is too short to share
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.images = [entry for entry in self.contract["inputs"] if entry["name"] in told["sensors"]]
        self.chance, self.greedy = np.random.default_rng(seed), greedy
        self.start()

    def start(self) -> None:
        """Begin an episode: forget everything. Call it for every goal."""
        shape = next(entry["shape"] for entry in self.contract["inputs"] if entry["name"] == "state")
        self.state, self.previous, self.mask = np.zeros(shape, np.float32), 0, 0.0

    def step(self, images: dict[str, np.ndarray], distance: float, angle: float) -> int:
        """The next action. Depth float32 [H, W] in metres, rgb uint8 [H, W, 3]; goal in metres, radians to the left."""
        given = {
            "goal": np.array([[distance, angle]], np.float32),
            "previous_action": np.array([self.previous], np.int64),
            "mask": np.array([self.mask], np.float32),
            "state": self.state,
        }
        for entry in self.images:
            image = np.asarray(images[entry["name"]])
            if image.dtype != entry["dtype"]:
                raise TypeError(f"{entry['name']} is {image.dtype}; the policy takes {entry['dtype']}")
            image = np.nan_to_num(image, nan=0.0, posinf=0.0) if image.dtype == np.float32 else image
            given[entry["name"]] = image.reshape(entry["shape"])
        logits, _, self.state = self.session.run(["logits", "value", "next_state"], given)
        chances = np.exp(logits[0].astype(np.float64) - logits.max())
        drawn = self.chance.random() * chances.sum()
        action = int(chances.argmax() if self.greedy else (drawn >= chances.cumsum()[:-1]).sum())
        self.previous, self.mask = action, 1.0
        return action


class Room:
    """A robot in an empty room, 7 x 6 m and 2.5 m high, that always knows where it is; put yours in its place."""

    def __init__(self, contract: dict, goal: tuple[float, float]):
        self.x = self.y = self.heading = 0.0  # metres ahead and to the left of where it began; radians to the left
        self.goal, self.camera, self.actions = goal, contract["camera"], contract["actions"]

    def see(self) -> dict[str, np.ndarray]:
        """What its camera shows: the distance to walls, floor and ceiling along the camera's axis; all is grey."""
        width, height, eye = (self.camera[name] for name in ("width", "height", "height_metres"))
        slope = math.tan(math.radians(self.camera["hfov_degrees"]) / 2)
        left = slope * (1 - (2 * np.arange(width) + 1) / width)
        up = slope * (1 - (2 * np.arange(height) + 1) / height) * height / width + 1e-6
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        sides = [(self.x, -2, 5, cos - sin * left + 1e-6), (self.y, -3, 3, sin + cos * left + 1e-6)]
        x, y, z = (np.where(ray > 0, high - at, low - at) / ray for at, low, high, ray in [*sides, (eye, 0, 2.5, up)])
        depth = np.minimum(np.minimum(x, y), z[:, None]).astype(np.float32)
        return {"depth": depth, "rgb": np.full((height, width, 3), 128, np.uint8)}

    def to_goal(self) -> tuple[float, float]:
        """Distance in metres and angle in radians, positive to the left."""
        x, y = self.goal[0] - self.x, self.goal[1] - self.y
        turn = math.atan2(y, x) - self.heading
        return math.hypot(x, y), math.atan2(math.sin(turn), math.cos(turn))

    def do(self, action: int) -> None:
        """Move as the action says; a real robot waits here until it stands still."""
        turn = math.radians(self.actions[action].get("degrees", 0.0))
        self.heading += {LEFT: turn, RIGHT: -turn}.get(action, 0.0)
        walked = self.actions[action].get("metres", 0.0)
        self.x += walked * math.cos(self.heading)
        self.y += walked * math.sin(self.heading)


def main(file: Path, goal: tuple[float, float] = (3.0, 1.0)) -> list[int]:
    """Walk to a goal, metres ahead and to the left; returns the actions."""
    policy = Policy(file, seed=0)
    robot, taken, took = Room(policy.contract, goal), [], []
    while STOP not in taken and len(taken) < policy.contract["max_steps"]:
        images, (distance, angle) = robot.see(), robot.to_goal()
        began = time.perf_counter()
        taken.append(policy.step(images, distance, angle))
        took.append(1000 * (time.perf_counter() - began))
        robot.do(taken[-1])
    print(f"{len(taken)} steps, {robot.to_goal()[0]:.2f} m from the goal at the end; {np.median(took):.2f} ms a step")
    return taken


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) == 2 else sys.exit("python robot.py FILE.onnx")
