from dataclasses import replace

import layouts
import pytest

from navprune.cli import main
from navprune.commands.environments import split_episodes
from navprune.commands.evaluate import run_evaluation
from navprune.config import load_config, to_yaml

RECIPES = {"pointnav_gibson": layouts.gibson, "pointnav_mp3d": layouts.mp3d, "pointnav_hm3d": layouts.hm3d}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_habitats_task_with_ddppos_settings(recipe):
    config = load_config(recipe)
    task, ppo, agent = config.task, config.ppo, config.agent
    assert (task.sensors, task.width, task.height, task.max_steps) == (("depth",), 256, 256, 500)
    assert (ppo.epochs, ppo.minibatches, ppo.max_grad_norm, ppo.steps, ppo.lr) == (2, 2, 0.2, 128, 2.5e-4)
    assert (ppo.clip, ppo.entropy_coefficient, ppo.value_coefficient, ppo.gae_lambda) == (0.2, 0.01, 0.5, 0.95)
    assert not (ppo.linear_lr or ppo.linear_clip or ppo.normalise_advantages) and config.warm_start is None
    assert (agent.encoder, agent.rnn, agent.rnn_layers, agent.hidden_size) == ("resnet50", "lstm", 2, 512)


def test_recipes_differ_in_their_data_and_hm3ds_in_its_least_depth():
    first, *others = map(load_config, RECIPES)
    tasks = [replace(other.task, min_depth=0.0) for other in others]
    assert all(replace(o, run=first.run, data=first.data, task=t) == first for o, t in zip(others, tasks))
    assert {config.data.name: config.task.min_depth for config in (first, *others)} == {
        "gibson": 0.0,
        "mp3d": 0.0,
        "hm3d": 0.5,
    }
    assert len({config.data.name for config in (first, *others)}) == len({c.run for c in (first, *others)}) == 3


def test_gibsons_second_version_has_the_locobots_body():
    first, second = load_config("pointnav_gibson"), load_config("pointnav_gibson_v2")
    assert first.task.body == (0.1, 1.5) and second.task.body == (0.18, 0.88)
    assert (first.data.version, second.data.version) == ("v1", "v2")
    task = replace(second.task, agent_radius=0.1, agent_height=1.5)
    assert replace(second, run=first.run, data=first.data, task=task) == first


def test_the_second_version_runs_on_navmeshes_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layouts.gibson(tmp_path, "v2")
    config = load_config("pointnav_gibson_v2", [f"data.folder={tmp_path}", "task.width=8", "task.height=8"])
    result, _ = run_evaluation("shortest-path", config, limit=4)
    assert result.measures["success"]["mean"] == 1
    built = sorted(path.name for path in (tmp_path / "scene_datasets" / "gibson").glob("*.r0.18_h0.88.navmesh"))
    assert "Cantwell.r0.18_h0.88.navmesh" in built


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (["train"], ["agent.base_planes=4", "data.train=val"]),
        (["evaluate", "shortest-path"], []),
        (["evaluate", "random"], ["task.agent_radius=0.2"]),
    ],
)
def test_a_scene_that_is_cut_off_ends_a_command_at_its_start(tmp_path, monkeypatch, capsys, command, settings):
    monkeypatch.chdir(tmp_path)
    layouts.gibson(tmp_path)
    scene = tmp_path / "scene_datasets" / "gibson" / "Eastville.glb"
    whole = scene.read_bytes()
    scene.unlink()
    scene.write_bytes(whole[:-10])
    sizes = ["task.width=32", "task.height=32", "environments=1", f"run={tmp_path / 'run'}"]
    config = ["--config", "pointnav_gibson", f"data.folder={tmp_path}"]
    assert main([*command, *config, *sizes, *settings]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{scene}: glTF file is damaged or cut off" in last


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run_on_data_in_their_layout(recipe, tmp_path):
    RECIPES[recipe](tmp_path)
    config = load_config(recipe, [f"data.folder={tmp_path}", "task.width=8", "task.height=8"])
    result, _ = run_evaluation("shortest-path", config, limit=4)
    assert result.measures["success"]["mean"] == 1


def test_scenes_are_chosen_by_configuration(tmp_path):
    layouts.mp3d(tmp_path)
    config = load_config("pointnav_mp3d", [f"data.folder={tmp_path}", "data.scenes=[2azQ1b91cZZ]"])
    assert {episode.scene_id for episode in split_episodes(config, "val")} == {"mp3d/2azQ1b91cZZ/2azQ1b91cZZ.glb"}
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file)) == config
