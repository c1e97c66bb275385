"""What a command is given as a network, and that every command understands the same."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from navprune.cli import main
from navprune.config import Config, load_config, to_yaml
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.weights import foreign_bytes
from navprune.rl.checkpoints import save_checkpoint
from navprune.source import (
    CLASSIFIER,
    CONTROL,
    ENCODER,
    FOLDER,
    SPEC_FILE,
    WEIGHTS_FILE,
    Source,
    agent_spec,
    grouped,
    named,
)

SPEC = PolicySpec(encoder_spec("resnet18", (1, 64, 64), 2), 8, 8)
POLICY = build(SPEC, seed=3)
STATE = {name: value.contiguous() for name, value in POLICY.state_dict().items()}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Everything that holds one and the same policy."""
    folder = tmp_path_factory.mktemp("source")
    config = to_yaml(load_config("pointnav", ["task.width=64", "task.height=64"]))
    checkpoint = save_checkpoint(
        folder / "run" / "checkpoints" / "000000000064", POLICY, config=config, metrics={"best_frames": 64}
    )
    for link in ("latest", "best"):
        (folder / "run" / link).symlink_to("checkpoints/000000000064")
    for suffix in ("pth", "pt", "ckpt", "PTH"):
        (folder / f"mine.{suffix}").write_bytes(foreign_bytes(POLICY))
    safetensors.torch.save_file(STATE, folder / "alone.safetensors")
    shutil.copytree(checkpoint, folder / "copy")
    (folder / "copy" / "weights.safetensors").rename(folder / "copy" / "other.safetensors")
    return folder


HOLD_THE_POLICY = {
    "run": FOLDER,
    "run/latest": FOLDER,
    "run/best": FOLDER,
    "run/checkpoints/000000000064": FOLDER,
    "run/latest/weights.safetensors": FOLDER,
    "mine.pth": WEIGHTS_FILE,
    "mine.pt": WEIGHTS_FILE,
    "mine.ckpt": WEIGHTS_FILE,
    "mine.PTH": WEIGHTS_FILE,
    "alone.safetensors": WEIGHTS_FILE,
    "copy/other.safetensors": WEIGHTS_FILE,
}


@pytest.mark.parametrize(("text", "kind"), HOLD_THE_POLICY.items())
def test_whatever_holds_a_policy_gives_it(things, text, kind):
    source = Source.parse(str(things / text))
    assert source.kind == kind and source.spec() == SPEC
    assert all(value.equal(STATE[name]) for name, value in source.policy().state_dict().items())
    assert source.config().task.width == (64 if kind == FOLDER else 256)
    assert source.config("pointnav", ["task.width=32"]).task.width == 32
    assert source.run == (things / "run" if text.startswith("run") else None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("resnet18", ENCODER), ("blind", ENCODER), ("cifar_resnet56", CLASSIFIER), ("random", CONTROL)],
)
def test_names_go_before_paths(tmp_path, monkeypatch, text, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / text).mkdir()
    assert Source.parse(text).kind == kind
    assert Source.parse(f"./{text}").kind == FOLDER


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (".", "run"), (".", "./run/../run/latest"), ("run", "."), ("run", "latest"), ("run/latest", "."),
        ("run/checkpoints", ".."), ("run/checkpoints/000000000064", "."), ("run/evaluation", "../latest"),
        ("run/checkpoints/000000000064", "weights.safetensors"),
    ],
)  # fmt: skip
def test_a_run_is_found_from_wherever_one_is(things, monkeypatch, inside, text):
    (things / "run" / "evaluation").mkdir(exist_ok=True)
    monkeypatch.chdir(things / inside)
    source = Source.parse(text)
    assert source.run.resolve() == things / "run" and next(iter(named([text])))
    assert source.run.is_absolute() == (inside not in (".", "run"))


def test_what_lies_beside_a_run_is_not_of_it(things, monkeypatch):
    shutil.copytree(things / "run" / "latest", things / "beside")
    (things / "link").symlink_to("run/latest")
    monkeypatch.chdir(things / "run")
    assert Source.parse("../beside").run is None and list(named(["../beside", "."])) == ["beside", "run"]
    assert Source.parse("../link").run == Path(".")


def test_a_checkpoint_is_looked_up_once(things):
    source = Source.parse(str(things / "run"))
    before, later = source.folder, things / "run" / "checkpoints" / "000000000128"
    shutil.copytree(before, later)
    assert source.folder == before != Source.parse(str(things / "run")).folder
    shutil.rmtree(later)


@pytest.mark.parametrize("spec", [SPEC, SPEC.encoder, classifier_spec("cifar_resnet56", 4)])
def test_a_spec_of_any_kind_is_read(tmp_path, spec):
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    source = Source.parse(str(tmp_path / "spec.json"))
    assert source.kind == SPEC_FILE and source.spec() == spec == source.load(seed=1).spec


def test_a_name_stands_for_the_configured_agent():
    config = load_config("pointnav", ["agent.base_planes=8", "task.width=64", "task.height=64"])
    assert Source.parse("resnet50").spec(config).encoder == encoder_spec("resnet50", (1, 64, 64), 8)
    assert Source.parse("resnet18").spec() == agent_spec(Config())


def test_a_home_folder_is_the_users(things, monkeypatch):
    monkeypatch.setenv("HOME", str(things))
    assert Source.parse("~/run").spec() == SPEC and Source.parse("~/mine.pth").spec() == SPEC


def test_one_thing_of_two_names_is_told_apart_and_named_once(things):
    texts = [str(things / "run" / "latest"), str(things / "run" / "best")]
    assert list(named(texts)) == ["latest", "best"]
    twins = [str(things / "a" / "latest"), str(things / "run" / "latest")]
    shutil.copytree(things / "run" / "latest", twins[0])
    assert list(named(twins)) == ["a-latest", "run-latest"]
    with pytest.raises(UserError, match="named twice"):
        named(["resnet18", "resnet18"])


COMMANDS = {
    "cost": ["cost", "SOURCE"],
    "latency": ["latency", "SOURCE", "--runs", "1", "--batch-sizes", "1"],
    "evaluate": ["evaluate", "SOURCE"],
    "prune": ["prune", "SOURCE", "--method", "l1", "--budget", "macs=1", "--out", "OUT"],
    "export": ["export", "SOURCE", "--out", "OUT"],
    "compare": ["compare", "SOURCE", "--out", "OUT"],
    "init": ["train", "run=OUT", "init=SOURCE"],
    "teacher": ["prune", "resnet18", "--method", "taylor", "--loss", "distillation", "--teacher", "SOURCE",
                "--budget", "macs=1", "--out", "OUT"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("wrong", "meant"), [("resnet5O", "resnet50"), ("runs/mine.pht", "runs/mine.pth"), ("nothing/of/the/kind", None)]
)
def test_every_command_says_what_may_be_given_instead_of_the_unknown(
    things, tmp_path, monkeypatch, capsys, command, wrong, meant
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    shutil.copy(things / "mine.pth", tmp_path / "runs")
    arguments = [word.replace("SOURCE", wrong).replace("OUT", "out") for word in COMMANDS[command]]
    assert main(arguments) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    if "/" in wrong:
        assert said.startswith(f"navprune: there is no file or folder {wrong}; ")
    else:
        assert said.startswith(f"navprune: {wrong} is neither a name") and ".safetensors" in said
    assert said.endswith(f"did you mean {meant}?" if meant else "give one that exists")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (command, text)
        for command in ("cost", "latency", "prune", "export")
        for text in ("run", "mine.pt", "alone.safetensors", "copy/other.safetensors", "copy/spec.json")
        if (command, text) != ("export", "copy/spec.json")
    ],
)
def test_every_command_takes_every_kind(things, tmp_path, capsys, command, text):
    out = str(tmp_path / "out")
    words = [word.replace("SOURCE", str(things / text)).replace("OUT", out) for word in COMMANDS[command]]
    assert main([*words, "--json", str(tmp_path / "answer.json")]) == 0
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer.get("input", [1, 64, 64]) == [1, 64, 64] and (command != "export" or answer["spec"] == SPEC.to_json())


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        *(
            (command, "goal-follower", "is a control agent, which has no network")
            for command in ("cost", "export", "init")
        ),
        ("export", "cifar_resnet56", "is a classifier, which habitat-baselines has none of"),
        ("init", "cifar_resnet56", "no policy but a cifar_resnet56 alone"),
    ],
)
def test_what_is_no_agents_network_is_refused_in_one_line(tmp_path, capsys, command, text, words):
    arguments = [word.replace("SOURCE", text).replace("OUT", str(tmp_path / "out")) for word in COMMANDS[command]]
    assert main(arguments) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert words in said


@pytest.mark.parametrize(
    ("content", "words"), [("{", "cannot be read"), ("[1]", "spec.json: "), ('{"encoder": {}}', "spec.json: ")]
)
def test_a_spec_that_is_none_is_told_in_one_line(tmp_path, content, words):
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        Source.parse(str(tmp_path / "spec.json")).spec()
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_than_the_spec_beside_them_are_refused(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "mine.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(PolicySpec(SPEC.encoder, 8, 9).to_json()))
    with pytest.raises(UserError, match=r"mine\.safetensors does not fit the network") as caught:
        Source.parse(str(tmp_path / "mine.safetensors")).load()
    assert "\n" not in str(caught.value)


# Several by name --------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Four runs, one of them moved aside, and what a shell left beside them."""
    for name in ("r50_s1", "r50_s10", "r50_s1.1", "p=50"):
        save_checkpoint(tmp_path / "runs" / name, POLICY)
    for name in ("r50_s1.log", "r50_s2.out"):
        (tmp_path / "runs" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def texts_of(groups):
    return {name: [source.text for source in group.values()] for name, group in groups.items()}


def test_a_pattern_stands_for_all_runs_that_match(runs):
    both = ["runs/r50_s1", "runs/r50_s10"]
    assert texts_of(grouped(["dense=runs/r50_s*"])) == {"dense": both}
    assert texts_of(grouped([f"dense={path}" for path in both])) == {"dense": both}
    assert texts_of(grouped(["dense=runs/r50_s1", "random", "dense=runs/r50_s10"])) == {
        "dense": both,
        "random": ["random"],
    }
    assert texts_of(grouped(["random", *both])) == {"random": ["random"], "r50_s1": both[:1], "r50_s10": both[1:]}
    assert list(grouped(["dense=runs/r50_s*"])["dense"]) == ["r50_s1", "r50_s10"]


def test_a_path_with_a_sign_of_equality_is_a_path_where_it_is_there(runs, monkeypatch):
    monkeypatch.chdir(runs)
    assert texts_of(grouped(["p=50"])) == {"p=50": ["p=50"]}
    assert texts_of(grouped(["../runs/p=50"])) == {"p=50": ["../runs/p=50"]}
    assert texts_of(grouped(["x=p=50"])) == {"x": ["p=50"]}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["dense=runs/r18_s*"], "no run matches runs/r18_s"),
        (["dense=runs/r50_s1", "dense=runs/r50_s1"], "named twice"),
        (["r50_s1=runs/r50_s10", "runs/r50_s1"], "two things are called r50_s1"),
        (["dense=runs/r50"], "no file or folder runs/r50"),
        (["dense="], "neither a name"),
        (["a/b=runs/r50_s1"], "no file or folder a/b=runs/r50_s1"),
    ],
)
def test_what_stands_for_nothing_or_for_two_things_is_told(runs, texts, words):
    with pytest.raises(UserError, match=words):
        grouped(texts)
