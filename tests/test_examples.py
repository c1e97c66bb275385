"""The scripts of examples/ do what their first lines say."""

import ast
import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from navprune.commands.export import ExportOptions, run_export
from navprune.evaluation.agents import FileAgent
from navprune.evaluation.exported import contract_of, read_exported
from navprune.models.step import metres_of
from navprune.source import Source
from navprune.tasks import GOAL
from navprune.tasks.config import TaskConfig

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = {"robot": 120, "ros2_node": 150}
"""At most; of others 50."""


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports(path):
    """The modules that a script imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all, so that homes are generated once."""
    return tmp_path_factory.mktemp("examples")


def test_an_agent_is_trained_and_measured_beside_a_control(folder):
    measures = example("train_and_evaluate").main(folder)
    assert list(measures) == [str(folder / "run"), "goal-follower"]
    assert all(np.isfinite(list(each.values())).all() and 0 <= each["spl"] <= 1 for each in measures.values())
    assert (folder / "run" / "latest" / "weights.safetensors").exists()


def test_agents_walk_to_their_goals_and_their_views_are_drawn(folder):
    ended = example("step_the_simulator").main(folder)
    assert ended and all(measures["success"] == 1 for measures in ended)
    depth = np.asarray(Image.open(folder / "depth.png"))
    assert depth.shape == (4 * 96, 6 * 96) and np.ptp(depth) > 100


def test_a_module_is_pruned_and_stays_what_it_was(capsys):
    module = example("prune_your_own_module")
    whole, small = (sum(p.numel() for p in model.parameters()) for model in (module.TwoBranches(), module.main()))
    assert small < whole
    assert "kept 5" in capsys.readouterr().out  # 50 to 60 %


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained agent as a robot gets it."""
    out = tmp_path_factory.mktemp("exported") / "agent.onnx"
    source = Source.parse(str(ROOT / "checkpoints" / "resnet18"))
    run_export(source, source.config(), out, ExportOptions())
    return out


def test_a_robot_walks_to_its_goal_with_the_exported_file_alone(exported, capsys):
    robot = example("robot")
    taken = robot.main(exported)
    assert taken[-1] == robot.STOP and len(taken) < 60
    distance = float(re.search(r"([\d.]+) m from the goal", capsys.readouterr().out).group(1))
    assert distance < 0.2
    imported = {name.partition(".")[0] for name in imports(ROOT / "examples" / "robot.py")}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_a_robot_acts_as_the_evaluated_agent(exported):
    """Over the same observations and draws; its images are those of the task in metres."""
    policy = example("robot").Policy(exported, seed=0)
    read = read_exported(exported)
    agent, draws = FileAgent(read.step(), read.spec, TaskConfig(), greedy=False), np.random.default_rng(0)
    agent.start(1)
    rng = torch.Generator().manual_seed(0)
    for step in range(20):
        depth, goal = torch.rand(1, 64, 64, 1, generator=rng), torch.rand(1, 2, generator=rng)
        draw = torch.tensor([draws.random()], dtype=torch.float64)
        wanted = agent.act({"depth": depth, GOAL: goal}, torch.tensor([step > 0]), torch.tensor([0]), draw)
        metres = metres_of(depth[0, :, :, 0], 0.0, 10.0).numpy()
        assert policy.step({"depth": metres}, *goal[0].tolist()) == int(wanted)


def test_a_robot_refuses_another_camera_and_another_file(exported, tmp_path):
    robot = example("robot")
    robot.Policy(exported, {"hfov_degrees": 90.5, "width": 64})
    with pytest.raises(SystemExit, match="hfov_degrees is 60"):
        robot.Policy(exported, {"hfov_degrees": 60})
    robot.Policy(exported, {"sensors": ["depth"]})
    with pytest.raises(SystemExit, match=r"sensors is \['rgb'\], and the policy was trained with \['depth'\]"):
        robot.Policy(exported, {"sensors": ["rgb"]})
    with pytest.raises(SystemExit, match=r"fov is 90, and the policy was trained with no such thing; .*hfov_degrees"):
        robot.Policy(exported, {"fov": 90})
    for file in (exported, contract_of(exported)):
        shutil.copy(file, tmp_path)
    with (tmp_path / exported.name).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SystemExit, match="is not the file"):
        robot.Policy(tmp_path / exported.name)
    with pytest.raises(TypeError, match="float64"):
        robot.Policy(exported).step({"depth": np.zeros((64, 64))}, 1.0, 0.0)


def twist():
    return SimpleNamespace(linear=SimpleNamespace(x=0.0), angular=SimpleNamespace(z=0.0))


class FakeNode:
    """What of rclpy's Node the example uses."""

    def __init__(self, name):
        self.sent = []

    def create_publisher(self, *_):
        return SimpleNamespace(publish=self.sent.append)

    def declare_parameter(self, name, value):
        return SimpleNamespace(value=value)

    def create_subscription(self, *_):
        return None

    create_timer = create_subscription

    def get_logger(self):
        return SimpleNamespace(info=lambda text: None)


@pytest.fixture
def ros2_node(monkeypatch):
    """The node's module over stand-ins for ROS."""
    given: dict[str, dict] = {
        "rclpy": {},
        "rclpy.node": {"Node": FakeNode},
        "rclpy.qos": {"qos_profile_sensor_data": None},
        "geometry_msgs.msg": {"Twist": twist, "PoseStamped": None},
        "nav_msgs.msg": {"Odometry": None},
        "sensor_msgs.msg": {"Image": None, "CameraInfo": None},
    }
    for name, contents in given.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "robot", example("robot"))
    return example("ros2_node")


def pose(x, y, heading):
    turned = SimpleNamespace(x=0.0, y=0.0, z=math.sin(heading / 2), w=math.cos(heading / 2))
    return SimpleNamespace(position=SimpleNamespace(x=x, y=y), orientation=turned)


def test_the_ros_node_drives_to_a_goal(ros2_node, exported):
    node = ros2_node.PointNav(exported)
    room = sys.modules["robot"].Room(read_exported(exported).contract, (3.0, 1.0))
    node.on_info(SimpleNamespace(height=128, width=160, k=[64.0]))
    node.policy.chance = np.random.default_rng(0)
    node.on_goal(SimpleNamespace(pose=pose(3.0, 1.0, 0.0)))
    for _ in range(6000):
        depth = np.zeros((128, 160), np.uint16)  # millimetres; a square in its middle is what the policy sees
        depth[:, 16:144] = np.kron(1000 * room.see()["depth"], np.ones((2, 2)))
        node.on_depth(
            SimpleNamespace(encoding="16UC1", height=128, width=160, step=320, data=depth.astype("<u2").tobytes())
        )
        node.on_odometry(SimpleNamespace(pose=SimpleNamespace(pose=pose(room.x, room.y, room.heading))))
        node.tick()
        if node.goal is None:
            break
        sent = node.sent[-1]
        room.heading += 0.05 * sent.angular.z
        room.x += 0.05 * sent.linear.x * math.cos(room.heading)
        room.y += 0.05 * sent.linear.x * math.sin(room.heading)
    assert node.goal is None and math.dist((room.x, room.y), (3.0, 1.0)) < 0.25
    assert (node.sent[-1].linear.x, node.sent[-1].angular.z) == (0.0, 0.0)


def test_the_ros_node_gives_up_an_action_that_something_blocks(ros2_node, exported):
    node, standing = ros2_node.PointNav(exported), SimpleNamespace(pose=SimpleNamespace(pose=pose(0.0, 0.0, 0.0)))
    node.policy = sys.modules["robot"].Policy(exported)
    node.on_odometry(standing)
    node.action, node.begun = sys.modules["robot"].FORWARD, node.place
    for _ in range(int(ros2_node.PATIENCE / ros2_node.TICK) + 2):
        node.tick()
    assert node.action is None and node.sent[0].linear.x > 0 and node.sent[-1].linear.x == 0


def test_the_ros_node_refuses_a_narrow_camera(ros2_node, exported):
    node = ros2_node.PointNav(exported)
    with pytest.raises(SystemExit, match="hfov_degrees"):
        node.on_info(SimpleNamespace(height=480, width=640, k=[600.0]))


@pytest.mark.parametrize("sensors", [["rgb"], ["depth", "rgb"], []])
def test_the_ros_node_refuses_a_policy_that_does_not_see_depth_alone(ros2_node, exported, tmp_path, sensors):
    contract = read_exported(exported).contract
    contract["camera"]["sensors"] = sensors
    shutil.copy(exported, tmp_path)
    contract_of(tmp_path / exported.name).write_text(json.dumps(contract))
    with pytest.raises(SystemExit, match="sensors is"):
        ros2_node.PointNav(tmp_path / exported.name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_how_to_run_it_and_is_linked(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES.get(path.stem, 50)
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"(examples/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")
