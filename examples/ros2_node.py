"""A ROS 2 node around an exported policy: depth camera, odometry and a goal in, velocities out. A file to copy from.

    python examples/ros2_node.py agent.onnx --ros-args -r depth:=/camera/depth/image_rect_raw

Put robot.py beside it. It listens to depth (sensor_msgs/Image), camera_info, odom and goal (geometry_msgs/PoseStamped
in the frame of the odometry), and publishes cmd_vel. Nothing in it avoids a collision that the policy does not: a
robot needs its own guard between cmd_vel and the wheels.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, Twist
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from robot import LEFT, STOP, Policy
from sensor_msgs.msg import CameraInfo, Image

SPEED, TURNING = 0.25, 0.5  # metres and radians a second
TICK, PATIENCE = 0.05, 5.0  # seconds between commands, and after which an action is given up: something is in the way
SLOWDOWN, FINEST = 2.0, 0.05  # speed for each metre or radian that is left, and the share of it that always remains


def depth_of(image: Any, height: int, width: int) -> np.ndarray:
    """A depth image in metres [height, width]: the middle of the camera's, every so many pixels; 0 for not measured."""
    kind, scale = {"32FC1": (np.float32, 1.0), "16UC1": (np.uint16, 0.001)}[image.encoding]
    rows = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.step)
    metres = rows[:, : image.width * np.dtype(kind).itemsize].copy().view(kind).astype(np.float32) * np.float32(scale)
    side = min(image.height / height, image.width / width)  # pixels of the camera for one of the policy's
    across = (image.width - side * width) / 2 + side * (np.arange(width) + 0.5)
    down = (image.height - side * height) / 2 + side * (np.arange(height) + 0.5)
    return np.nan_to_num(metres[down.astype(int)[:, None], across.astype(int)], nan=0.0, posinf=0.0)


def hfov_of(info: Any, height: int, width: int) -> float:
    """Horizontal field of view in degrees of what `depth_of` leaves of a camera's image."""
    side = min(info.height / height, info.width / width)
    return math.degrees(2 * math.atan(side * width / 2 / info.k[0]))


def place_of(pose: Any) -> tuple[float, float, float]:
    """x and y in metres and the heading in radians, to the left, of a pose in ROS's axes (x ahead, y left, z up)."""
    q = pose.orientation
    return pose.position.x, pose.position.y, math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))


def wrapped(angle: float) -> float:
    """The same angle from -pi to pi."""
    return math.atan2(math.sin(angle), math.cos(angle))


class PointNav(Node):
    """Takes an action, lets the robot come to rest, looks, and takes the next."""

    def __init__(self, file: Path):
        super().__init__("pointnav")
        self.file = file
        self.camera = Policy(file, {"sensors": ["depth"]}).contract["camera"]  # what the policy asks of it
        self.policy: Policy | None = None  # made when the camera has said what it is
        self.depth: np.ndarray | None = None
        self.goal: tuple[float, float] | None = None
        self.place: tuple[float, float, float] | None = None
        self.action: int | None = None  # that the robot carries out, None while it stands
        self.begun: tuple[float, float, float] | None = None
        self.seconds = 0.0  # since then
        self.velocity = self.create_publisher(Twist, "cmd_vel", 1)
        self.camera_height = float(self.declare_parameter("camera_height", 1.25).value)
        self.create_subscription(CameraInfo, "camera_info", self.on_info, qos_profile_sensor_data)
        self.create_subscription(Image, "depth", self.on_depth, qos_profile_sensor_data)
        self.create_subscription(Odometry, "odom", self.on_odometry, qos_profile_sensor_data)
        self.create_subscription(PoseStamped, "goal", self.on_goal, 1)
        self.create_timer(TICK, self.tick)

    def on_info(self, info: Any) -> None:
        """Check the camera against the contract, once; ends the node where it does not fit."""
        if self.policy is None:
            hfov = hfov_of(info, self.camera["height"], self.camera["width"])
            self.policy = Policy(self.file, {"hfov_degrees": hfov, "height_metres": self.camera_height})

    def on_depth(self, image: Any) -> None:
        """Keep the latest image that was taken while the robot stood."""
        if self.policy and self.action is None:
            self.depth = depth_of(image, self.camera["height"], self.camera["width"])

    def on_odometry(self, message: Any) -> None:
        """Keep the latest place."""
        self.place = place_of(message.pose.pose)

    def on_goal(self, message: Any) -> None:
        """A goal begins an episode."""
        self.goal, self.action, self.depth = place_of(message.pose)[:2], None, None
        if self.policy:
            self.policy.start()

    def tick(self) -> None:
        """Go on with an action, or choose the next one."""
        command = Twist()
        if self.action is not None:
            left, self.seconds = self.left_to_do(), self.seconds + TICK
            if left <= 0 or self.seconds > PATIENCE:
                self.action = self.depth = None
            elif "metres" in self.entry():
                command.linear.x = SPEED * max(FINEST, min(1.0, SLOWDOWN * left))
            else:
                speed = TURNING * max(FINEST, min(1.0, SLOWDOWN * left))
                command.angular.z = speed if self.action == LEFT else -speed
        elif self.policy and self.goal and self.place and self.depth is not None:
            x, y = self.goal[0] - self.place[0], self.goal[1] - self.place[1]
            angle = wrapped(math.atan2(y, x) - self.place[2])
            self.begun, self.seconds = self.place, 0.0
            self.action = self.policy.step({"depth": self.depth}, math.hypot(x, y), angle)
            if self.action == STOP:
                self.get_logger().info(f"stopped {math.hypot(x, y):.2f} m from the goal")
                self.goal = self.action = None
        self.velocity.publish(command)

    def entry(self) -> dict:
        """What the contract says of the action."""
        assert self.policy is not None and self.action is not None
        return self.policy.contract["actions"][self.action]

    def left_to_do(self) -> float:
        """Metres or radians that are left of the action."""
        assert self.place is not None and self.begun is not None
        if "metres" in self.entry():
            return self.entry()["metres"] - math.dist(self.place[:2], self.begun[:2])
        return math.radians(self.entry()["degrees"]) - abs(wrapped(self.place[2] - self.begun[2]))


def main() -> None:
    """Run the node until it is interrupted."""
    rclpy.init()
    rclpy.spin(PointNav(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
