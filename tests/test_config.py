from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from navprune.commands.environments import training_env
from navprune.config import Config, load_config, recipes, to_yaml
from navprune.errors import UserError


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_loads_and_survives_a_round_trip(recipe, tmp_path):
    config = load_config(recipe)
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(str(file)) == config


def test_settings_change_what_they_name_and_nothing_else():
    before = load_config("pointnav_homes")
    after = load_config("pointnav_homes", ["ppo.lr=1e-4", "agent=resnet50"])
    assert after.ppo == replace(before.ppo, lr=1e-4)
    assert (after.agent.encoder, after.agent.rnn) == ("resnet50", "lstm")
    assert after.task == before.task


def test_habitat_sim_runs_in_habitat_labs_workers():
    assert load_config("pointnav_homes").env == "embedded"
    assert load_config("pointnav_homes", ["simulator=habitat_sim"]).env == "habitat"
    assert load_config("pointnav_homes", ["env=habitat"]).simulator == "embedded"


@pytest.mark.skipif(find_spec("quaternion") is not None, reason="habitat-lab is installed")
def test_without_habitat_lab_its_environments_say_what_to_install():
    reference = Path(__file__).parent / "data" / "reference"
    settings = ["env=habitat", f"data.folder={reference}", "data.name=reference", "data.train=val"]
    with pytest.raises(UserError, match="pip install"):
        training_env(load_config("pointnav", settings))


def test_a_phase_can_be_turned_off():
    assert load_config("pointnav_homes", ["warm_start=null"]).warm_start is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task.widht=3", "unknown key task.widht; did you mean task.width?"),
        ("lr=3", "unknown key lr; did you mean ppo.lr?"),
        ("warm_start.frame=3", "did you mean warm_start.frames?"),
        ("agent=resnet19", "agent/resnet19"),
        ("task.width=wide", "task.width: Value 'wide'"),
        ("ppo.clip=-1", "clip"),
        ("task.sensors=[sonar]", "depth and rgb, not sonar"),
        ("env=gym", "env is embedded or habitat, not gym"),
        ("simulator=habitat-sim", "simulator is embedded or habitat_sim, not habitat-sim"),
        ("gpu=-2", "-1 for none"),
        ("task.width", "write key=value"),
    ],
)
def test_a_mistake_is_named_in_one_line(setting, message):
    with pytest.raises(UserError) as error:
        load_config("demo", [setting])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_of_ones_own_may_choose_from_the_groups(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: {width: 32}\n")
    config = load_config(str(file), ["agent.encoder=blind"])
    assert (config.task.width, config.agent.encoder) == (32, "blind")
    file.write_text("defaults: [{agent: resnet50}, _self_]\ntask: {width: 32}\n")
    assert load_config(str(file)).agent.encoder == "resnet50"
    assert load_config(str(file), ["agent=simple_cnn"]).agent.encoder == "simple_cnn"


def test_broken_yaml_is_one_line(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("task: {width: [")
    with pytest.raises(UserError) as error:
        load_config(str(file))
    assert "broken.yaml" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean demo"):
        load_config("dmo")


def test_defaults_are_habitats():
    task, ppo = Config().task, Config().ppo
    assert (task.width, task.hfov, task.forward_step, task.turn_angle, task.max_steps) == (
        256,
        90,
        0.25,
        10,
        500,
    )
    assert (ppo.lr, ppo.clip, ppo.gamma, ppo.gae_lambda, ppo.steps, ppo.epochs) == (
        2.5e-4,
        0.2,
        0.99,
        0.95,
        128,
        4,
    )
