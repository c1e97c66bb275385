"""`navprune evaluate` and `navprune compare` of classifiers."""

import json
import re
from pathlib import Path

import pytest
import torch
from labelled_images import npz
from torch.utils.tensorboard import SummaryWriter

from navprune.cli import main
from navprune.commands.evaluate_classifier import opened_classifier
from navprune.config import load_config, to_yaml
from navprune.images.config import ImagesConfig
from navprune.images.splits import open_images
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.rl.checkpoints import save_checkpoint
from navprune.source import Source, agent_spec

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TEST = len(open_images(ImagesConfig(), "test"))


def checkpoint(folder, *settings, seed=0, width=0.1, kinds=10, **facts):
    config = load_config("digits_resnet20", settings)
    spec = classifier_spec("cifar_resnet20", kinds, (1, 8, 8), width)
    return str(save_checkpoint(folder, build(spec, seed), config=to_yaml(config), metrics={"frames": 640, **facts}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trainings: three of one classifier, two of another, which is wider; and an agent."""
    folder = tmp_path_factory.mktemp("classifiers")
    for seed in range(3):
        checkpoint(folder / f"thin_s{seed}", seed=seed)
    for seed in range(2):
        checkpoint(folder / f"wide_s{seed}", seed=seed, width=0.2)
    tiny = ["agent.encoder=blind", "agent.visual_features=8", "agent.hidden_size=8", f"data.folder={REFERENCE}"]
    config = load_config("pointnav", tiny)
    save_checkpoint(folder / "agent", build(agent_spec(config), 0), config=to_yaml(config))
    return folder


def answer(tmp_path, *arguments):
    assert main([*map(str, arguments), "--json", str(tmp_path / "answer.json")]) == 0
    return json.loads((tmp_path / "answer.json").read_text())


def mistake(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    return said


def test_evaluate_tells_a_split_and_every_image_of_it(runs, tmp_path, capsys):
    out = tmp_path / "out"
    found = answer(tmp_path, "evaluate", runs / "thin_s0", "--out", out)
    assert found.keys() == {"split", "images", "classes", "measures", "images_per_second"}
    assert (found["split"], found["images"], found["classes"]) == ("test", TEST, 10) and found["images_per_second"] > 0
    assert found["measures"].keys() == {"top1", "top5", "cross_entropy"}
    said = capsys.readouterr().out
    assert f"{TEST} images of test" in said and "cross entropy" in said
    summary = json.loads((out / "summary.json").read_text())
    assert {key: summary[key] for key in found} == found
    assert (summary["classifier"], summary["frames"]) == (str(runs / "thin_s0"), 640)
    assert len(summary["conditions"]["images"]) == 64
    records = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert len(records) == TEST
    assert found["measures"]["top1"]["mean"] == pytest.approx(sum(record["top1"] for record in records) / TEST)


def test_another_split_has_other_images(runs, tmp_path):
    conditions = []
    for split in ("val", "train"):
        found = answer(tmp_path, "evaluate", runs / "thin_s0", "--split", split, "--out", tmp_path / split)
        assert found["split"] == split
        conditions.append(json.loads((tmp_path / split / "summary.json").read_text())["conditions"])
    assert conditions[0] != conditions[1]


DIGITS = {"mean": [4.0], "deviation": [6.0], "classes": [*"0123456789"]}


def test_images_are_normalised_as_the_checkpoint_learnt_them(tmp_path):
    """Whatever the present data's own mean is."""
    given = Source.parse(checkpoint(tmp_path / "net", **DIGITS))
    plain, found = (open_images(ImagesConfig(), "test"), opened_classifier(given, given.config()).images)
    rows = torch.arange(9)
    seen = plain.views(rows) * plain.deviation + plain.mean
    torch.testing.assert_close(found.views(rows), (seen - 4) / 6)
    assert found.digest == plain.digest


@pytest.mark.parametrize("setting", ["test=0.3", "split_seed=9", "validation=0", "size=8"])
def test_what_was_learnt_is_not_measured_as_if_held_out(tmp_path, capsys, setting):
    network, name = checkpoint(tmp_path / "net", **DIGITS), setting.partition("=")[0]
    said = mistake(capsys, "evaluate", network, f"images.{setting}", "--split", "train")
    assert f"{network} was trained with images.{name}=" in said
    assert mistake(capsys, "evaluate", network, f"images.{setting}", "--config", "digits_resnet20") == said


def test_other_classes_are_told(tmp_path, capsys):
    network = checkpoint(tmp_path / "net", **{**DIGITS, "classes": [*"012345678", "ten"]})
    assert "calls a class ten, and the data 9; give images of its classes" in mistake(capsys, "evaluate", network)


def test_of_few_classes_tables_leave_out_what_is_always_right_and_say_so_once(tmp_path, capsys):
    source, words = npz(tmp_path / "set.npz", 50, 5, tests=20), "top-5 is left out: of five classes or fewer"
    networks = [checkpoint(tmp_path / f"n{i}", f"images.source={source}", seed=i, kinds=5) for i in range(2)]
    found = answer(tmp_path, "evaluate", networks[0], "--out", tmp_path / "out")
    assert found["measures"]["top5"]["mean"] == 1 and found["classes"] == 5
    said = capsys.readouterr().out
    assert said.count(words) == 1 and "top5" not in said
    answer(tmp_path, "compare", *networks, "--out", tmp_path / "both")
    said = capsys.readouterr().out
    assert said.count(words) == said.count("top-5") == 1


def test_a_name_is_evaluated_untrained_on_the_images_that_a_recipe_names(tmp_path):
    arguments = "evaluate", "cifar_resnet20", "--config", "digits_resnet20", "classifier.width=0.1", "--out", tmp_path
    assert answer(tmp_path, *arguments)["measures"]["top1"]["mean"] < 0.5


@pytest.mark.parametrize(
    "option", ["--greedy", "--seed 0", "--environments 4", "--episodes 3", "--pictures 0", "--against other"]
)
def test_what_only_agents_have_is_refused(runs, tmp_path, capsys, option):
    said = mistake(capsys, "evaluate", runs / "thin_s0", *option.split(), "--out", tmp_path / "out")
    assert f"{option.split()[0]} is for agents" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("network", "recipe", "words"),
    [
        ("thin_s0", "pointnav", "names no images; give --config"),
        ("agent", "digits_resnet20", "is no classifier"),
        ("random", "digits_resnet20", "random is no classifier"),
        ("cifar_resnet20", "pointnav", "names no images; give --config"),
    ],
)
def test_networks_and_data_of_two_kinds_are_told(runs, tmp_path, capsys, network, recipe, words):
    given = runs / network if (runs / network).exists() else network
    said = mistake(capsys, "evaluate", given, "--config", recipe, "--out", tmp_path / "out")
    assert words in said and not (tmp_path / "out").exists()


def test_a_classifier_of_other_images_is_told(tmp_path, capsys):
    spec = classifier_spec("cifar_resnet20", 7, (1, 8, 8), 0.1)
    other = save_checkpoint(tmp_path / "other", build(spec, 0), config=to_yaml(load_config("digits_resnet20")))
    assert "[1, 8, 8] in 7 classes" in mistake(capsys, "evaluate", other)


def test_trainings_of_classifiers_are_one_row_and_are_held_against_the_first(runs, tmp_path, capsys):
    with SummaryWriter(runs / "thin_s0" / "tensorboard") as writer:
        for step in range(3):
            writer.add_scalar("metrics/top1", step / 10, 100 * step)
    out = tmp_path / "out"
    named = f"thin={runs}/thin*", f"wide={runs}/wide*"
    found = answer(tmp_path, "compare", *named, "--out", out, "--margin", "0.5")
    thin, wide = found["rows"]
    assert [len(row["runs"]) for row in found["rows"]] == [3, 2] and not found["differences"]
    summaries = [
        json.loads((out / "evaluation" / "thin" / f"thin_s{i}" / "summary.json").read_text()) for i in range(3)
    ]
    means = [summary["measures"]["top1"]["mean"] for summary in summaries]
    top1 = thin["evaluation"]["measures"]["top1"]
    assert top1["mean"] == pytest.approx(sum(means) / 3) and top1["low"] < top1["mean"] < top1["high"]
    assert thin["evaluation"]["images"] == TEST and thin["statistics"]["classes"] == 10
    assert thin["statistics"]["top1"]["worst_class"]["class"] in {str(digit) for digit in range(10)}
    assert thin["cost"]["deployed"]["macs"] < wide["cost"]["deployed"]["macs"]
    assert [row["batch_size"] for row in thin["latency"]] == [1, 8]
    compared = found["comparisons"]
    assert (compared["reference"], compared["margin"]) == ("thin", 0.5) and compared["measures"].keys() == {
        "top1",
        "top5",
    }
    (against,) = compared["measures"]["top1"]
    gap = wide["evaluation"]["measures"]["top1"]["mean"] - top1["mean"]
    assert against["difference"]["mean"] == pytest.approx(gap) and against["non_inferiority"]["shown"]
    said, page = capsys.readouterr().out, (out / "report.html").read_text()
    for words in ("top-1 against thin", "better in, of images", "worst class", "MACs (M)"):
        assert words in said and words in page
    told = re.sub(r"base64,[^\"]*", "", page)
    assert "bootstrap over runs and images" in told and not re.search("SPL|episode|scene|encoder", told)
    assert {file.stem for file in (out / "figures").iterdir()} == {"curves", "savings", "top1_latency", "top1_macs"}


def test_agents_and_classifiers_are_not_compared_with_each_other(runs, tmp_path, capsys):
    for order in (("agent", "thin_s0"), ("thin_s0", "agent")):
        said = mistake(capsys, "compare", *(runs / name for name in order), "--out", tmp_path / "out")
        assert "agent is an agent and thin_s0 a classifier" in said and not (tmp_path / "out").exists()
    assert "random is no classifier" in mistake(
        capsys, "compare", runs / "thin_s0", "random", "--out", tmp_path / "out"
    )
    assert "--pictures" in mistake(capsys, "compare", runs / "thin_s0", "--pictures", "1", "--out", tmp_path / "out")


def test_classifiers_of_other_images_are_compared_on_request_alone(runs, tmp_path, capsys):
    other = checkpoint(tmp_path / "other", "images.split_seed=1", seed=5)
    arguments = "compare", runs / "thin_s0", other, "--out", tmp_path / "out"
    said = mistake(capsys, *arguments)
    assert "other is measured with other images, unlike thin_s0" in said and not (tmp_path / "out").exists()
    found = answer(tmp_path, *arguments, "--each-its-own")
    assert [row["name"] for row in found["rows"]] == ["thin_s0", "other*"] and found["comparisons"] == {}


def test_how_training_views_are_made_does_not_matter(runs, tmp_path):
    other = checkpoint(tmp_path / "other", "images.pad=0", "images.flip=true", seed=5)
    assert not answer(tmp_path, "compare", runs / "thin_s0", other, "--out", tmp_path / "out")["differences"]
