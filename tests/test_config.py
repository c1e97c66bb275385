import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from navprune import config as configuration
from navprune.cli import main
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
    before = load_config("pointnav")
    after = load_config("pointnav", ["ppo.lr=1e-4", "agent=resnet50"])
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
        ("lr=3", "unknown key lr; did you mean ppo.lr or"),
        ("warm_start.frame=3", "did you mean warm_start.frames?"),
        ("agent=resnet19", "no recipe agent/resnet19; did you mean resnet18?"),
        ("ppo=fast", "no recipe ppo/fast"),
        ("task.width=wide", "task.width is 'wide'; it must be a whole number"),
        ("task.width=3.5", "task.width is '3.5'; it must be a whole number"),
        ("ppo.lr=fast", "ppo.lr is 'fast'; it must be a number"),
        ("ppo.lr=null", "ppo.lr is 'null'; it must be a number"),
        ("gpu=first", "gpu is 'first'; it must be a whole number or null"),
        ("task.sliding=perhaps", "task.sliding is 'perhaps'; it must be true or false"),
        ("task.sensors=[{depth: 1}]", "task.sensors is {'depth': '1'}; it must be text"),
        ("run.name=here", "run is {'name': 'here'}; it must be text"),
        ("agent=null", "agent is 'null'; it must be a group of settings"),
        ("+ppo.lr=1", "unknown key +ppo; did you mean ppo?"),
        ("data.scene_memory=0", "data.scene_memory"),
        ("ppo.clip=-1", "clip"),
        ("task.sensors=[sonar]", ", not sonar"),
        ("env=gym", "env is gym; known are embedded, habitat"),
        ("simulator=habitat-sim", "simulator is habitat-sim; known are embedded, habitat_sim"),
        ("gpu=-2", "gpu is -2; it must be a number of at least -1"),
        ("task.width", "write key=value"),
    ],
)
def test_a_mistake_is_named_in_one_line(setting, message):
    with pytest.raises(UserError) as error:
        load_config("demo", [setting])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


TEXTS = st.text(st.characters(exclude_characters="\0"), min_size=1)
AWKWARD = (
    "Jürgen", "my code (v2)", "a=b", "Ünï (v2) a=b", "a#b", "a, b", "'a'", '"a"', "${a}", "${oc.env:HOME}", "a: b",
    "a\nb", "a ", " a", "null", "true", "1e5", "010", "2026-11-28", "[a", "{a: b}", "!a", "&a", "*a",
    "???", "\udcfc", "\x85", "\ufeff",
)  # fmt: skip


def stored(config, folder):
    file = folder / "config.yaml"
    file.write_text(to_yaml(config), encoding="ascii")
    return load_config(str(file))


few = settings(max_examples=40, deadline=None)


def every(argument, values):
    """Examples of one argument."""

    def decorate(test):
        for value in values:
            test = example(**{argument: value})(test)
        return test

    return decorate


@few
@every("text", AWKWARD)
@given(text=TEXTS)
def test_text_reaches_the_setting_as_it_was_typed(text):
    config = load_config("demo", [f"data.name={text}", f"run={text}"])
    assert (config.data.name, config.run) == (text, os.path.expanduser(text))


@few
@every("text", AWKWARD)
@given(text=TEXTS)
def test_what_is_written_is_read_again(text, tmp_path_factory):
    keys = ("run", "init", "data.folder", "data.scenes", "pruning.teacher")
    config = load_config("demo", [f"{key}={text}" for key in keys])
    assert stored(config, tmp_path_factory.getbasetemp()) == config


@few
@given(st.floats(1e-12, 1), st.floats(1e-12), st.integers(0, 2**64), st.booleans())
def test_numbers_are_read_again(lr, clip, seed, flag):
    config = load_config("demo", [f"ppo.lr={lr}", f"ppo.clip={clip}", f"trainer.seed={seed}", f"ppo.linear_lr={flag}"])
    assert (config.ppo.lr, config.ppo.clip, config.trainer.seed, config.ppo.linear_lr) == (lr, clip, seed, flag)


def test_infinity_is_read_again(tmp_path):
    config = load_config("demo", ["ppo.clip=inf"])
    assert stored(config, tmp_path) == config


@pytest.mark.parametrize("key", ["run", "init", "data.folder", "pruning.teacher", "pruning.rewind"])
def test_a_tilde_is_the_home_in_paths_alone(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config("demo", [f"{key}=~/mine", "data.name=~/mine", f"data.val=a~{key}"])
    for name in key.split("."):
        config = getattr(config, name)
    assert config == f"{tmp_path}/mine"
    assert load_config("demo", ["data.name=~/mine", "data.val=a~b"]).data.name == "~/mine"


def test_a_tilde_behind_an_option_is_the_home_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["doctor", "--data=~/mine"]) == 0
    assert f"data sets in {tmp_path}/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("Adrian", ("Adrian",)),
        ("Adrian,Bolton", ("Adrian", "Bolton")),
        ("Adrian, Bolton", ("Adrian", "Bolton")),
        ("[Adrian,Bolton]", ("Adrian", "Bolton")),
        ('["a, b", 1e5]', ("a, b", "1e5")),
        ("2azQ1b91cZZ", ("2azQ1b91cZZ",)),
        ("null", None),
    ],
)
def test_one_name_is_a_list_of_one(text, scenes, tmp_path):
    config = load_config("pointnav_mp3d", [f"data.scenes={text}"])
    assert config.data.scenes == scenes
    assert stored(config, tmp_path) == config
    assert load_config("pointnav", ["task.sensors=rgb"]).task.sensors == ("rgb",)


def test_one_name_is_a_list_of_one_in_a_file(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("data: {scenes: Adrian}\ntask: {sensors: [rgb, depth]}\n")
    config = load_config(str(file))
    assert (config.data.scenes, config.task.sensors) == (("Adrian",), ("rgb", "depth"))


def test_text_in_a_file_is_text_whatever_yaml_makes_of_it(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("run: 2026-11-28\ninit: ~\nwarm_start:\ndata: {name: on, version: 1.0, train: null}\n")
    config = load_config(str(file))
    assert (config.run, config.init, config.warm_start) == ("2026-11-28", None, None)
    assert (config.data.name, config.data.version, config.data.train) == ("on", "1.0", "null")


@pytest.mark.parametrize(("text", "value"), [("false", False), ("Off", False), ("True", True), ("yes", True)])
def test_yes_and_no_are_yamls(text, value, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"task: {{sliding: {text}}}\n")
    assert load_config(str(file)).task.sliding is load_config("demo", [f"task.sliding={text}"]).task.sliding is value


def test_a_budget_needs_no_quotes():
    assert load_config("demo", ["pruning.budget=macs=0.5,parameters=0.4"]).pruning.budget == "macs=0.5,parameters=0.4"


@pytest.mark.parametrize("place", ["Jürgen", "my code (v2)", "a=b", "Ünï (v2) a=b", "a#b, c", "${x}"])
def test_the_recipes_may_stand_anywhere(place, tmp_path, monkeypatch):
    folder = tmp_path / place / "habitat_configs"
    shutil.copytree(configuration.FOLDER, folder)
    (folder / "agent" / "mine.yaml").write_text("encoder: blind\n")
    monkeypatch.setattr(configuration, "FOLDER", folder)
    assert load_config("pointnav_hm3d", ["agent=mine"]).agent.encoder == "blind"
    own = folder.parent / "own.yml"
    own.write_text("defaults: [demo]\nagent: {rnn: lstm}\n")
    assert load_config(str(own), ["agent=mine"]).agent == replace(
        load_config("demo").agent, encoder="blind", rnn="lstm"
    )


@pytest.mark.parametrize("name", ["my.yml", "my.yaml", "configs/my", "./demo"])
def test_a_file_that_is_not_there_is_called_a_file(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", name]) == 2
    said = capsys.readouterr().err
    assert f"there is no file {name}" in said and "did you mean" not in said


def test_a_file_without_its_ending_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text("run: here")
    with pytest.raises(UserError, match=r"there is no recipe mine; did you mean mine\.yml\?"):
        load_config("mine")


@pytest.mark.parametrize(("text", "frames"), [("1e6", 1_000_000), ("2_000", 2000), ("3.0", 3), ("+4", 4)])
def test_whole_numbers_may_be_written_in_any_way(text, frames):
    assert load_config("pointnav", [f"trainer.total_frames={text}"]).trainer.total_frames == frames
    for wrong in ("1.5", "1e-3", "inf", "nan", "one"):
        with pytest.raises(UserError, match="must be a whole number"):
            load_config("pointnav", [f"trainer.total_frames={wrong}"])


def test_a_recipe_of_ones_own_may_choose_from_the_groups(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: {width: 32}\n")
    config = load_config(str(file), ["agent.encoder=blind"])
    assert (config.task.width, config.agent.encoder) == (32, "blind")
    file.write_text("defaults: [{agent: resnet50}, _self_]\ntask: {width: 32}\n")
    assert load_config(str(file)).agent.encoder == "resnet50"
    assert load_config(str(file), ["agent=simple_cnn"]).agent.encoder == "simple_cnn"


def test_what_a_recipe_says_stands_above_its_choices_and_below_settings(tmp_path):
    demo = load_config("demo")
    chosen = load_config("demo", ["agent.rnn_layers=3", "agent=resnet50", "agent.base_planes=4"]).agent
    assert chosen == replace(demo.agent, encoder="resnet50", rnn_layers=3, base_planes=4)
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(demo))  # has no defaults: the choice goes on top
    assert load_config(str(file), ["agent=blind"]).agent == replace(demo.agent, encoder="blind")
    file.write_text("defaults: [_self_, agent: resnet50]\nagent: {rnn: gru, base_planes: 4}\n")
    assert (load_config(str(file)).agent.rnn, load_config(str(file)).agent.base_planes) == ("lstm", 4)


def test_the_last_word_on_a_section_counts():
    assert load_config("pointnav", ["pruning=gradual", "pruning=null"]).pruning is None
    assert load_config("pointnav", ["pruning=null", "pruning=gradual"]).pruning.budget == "macs=0.5"
    assert load_config("pointnav", ["pruning=null", "pruning.cuts=3"]).pruning.cuts == 3


def test_a_recipe_may_build_on_one_of_its_own_name(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("defaults: demo\ntask: {width: 32}\n")
    assert load_config(str(file)) == replace(load_config("demo"), task=replace(load_config("demo").task, width=32))
    file.write_text("defaults: [here]\n")
    (tmp_path / "here.yaml").write_text("defaults: [here]\n")
    with pytest.raises(UserError, match="no recipe here"):
        load_config(str(file))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"task: {width: [", "line 1 is no YAML"),
        (b"task: {width: 3}\nrun: a\ntask: {height: 3}", "task stands twice"),
        (b"task: {width: 3, width: 4}", "width stands twice"),
        ("run: Jürgen".encode("latin-1"), "is no YAML"),
        (b"- task", "holds no settings"),
        (b"task", "holds no settings"),
        (b"task: 3", "task is '3'; it must be a group of settings"),
        (b"defaults: [nothing]", "there is no recipe nothing"),
    ],
)
def test_a_broken_file_is_one_line(content, problem, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(str(file))
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match=r"no recipe dmo; did you mean demo\?"):
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
