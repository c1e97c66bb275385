"""`navprune compare`: one table holds what was measured alike, or says how it was not."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from navprune.cli import main
from navprune.commands import compare, evaluate, prune
from navprune.config import load_config, to_yaml
from navprune.models.build import build
from navprune.rl.checkpoints import save_checkpoint
from navprune.source import agent_spec

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TINY = [
    f"data.folder={REFERENCE}", "data.name=reference", "data.scenes=[apartment]", "task.max_steps=3", "task.width=32",
    "task.height=32", "agent.encoder=blind", "agent.visual_features=8", "agent.hidden_size=8",
]  # fmt: skip


def checkpoint(folder, *settings, seed=0):
    config = load_config("pointnav", [*TINY, *settings])
    return str(save_checkpoint(folder, build(agent_spec(config), seed), config=to_yaml(config)))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("compare") / "usual")


def compared(tmp_path, *arguments):
    out = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "answer.json"), "--pictures", "0"]
    assert main(["compare", *arguments, *out]) == 0
    return json.loads((tmp_path / "answer.json").read_text())


def changed_copy(folder, **changes):
    """The data set elsewhere, its first episode changed."""
    shutil.copytree(REFERENCE, folder)
    file = folder / "datasets" / "pointnav" / "reference" / "v1" / "val" / "content" / "apartment.json.gz"
    content = json.loads(gzip.decompress(file.read_bytes()))
    content["episodes"][0] |= changes
    file.write_bytes(gzip.compress(json.dumps(content).encode()))
    return f"data.folder={folder}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("task.success_distance=3.0", "success_distance 3.0 instead of 0.2"),
        ("task.turn_angle=30.0", "turn_angle 30.0 instead of 10.0"),
        ("task.forward_step=0.5", "forward_step 0.5 instead of 0.25"),
        ("task.max_steps=4", "max_steps 4 instead of 3"),
        ("task.sliding=false", "sliding False instead of True"),
        ("task.success_reward=10.0", "success_reward 10.0 instead of 2.5"),
        ("data.scenes=[duplex]", "other episodes"),
        ("data.scenes=null", "other episodes"),
    ],
)
def test_runs_that_are_measured_otherwise_are_not_compared(usual, tmp_path, capsys, setting, words):
    other = checkpoint(tmp_path / "other", setting)
    assert main(["compare", usual, other, "--out", str(tmp_path / "out")]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"other is measured with {words}, unlike usual" in said and "--each-its-own" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"start_rotation": [0.0, 1.0, 0.0, 0.0]}, {"episode_id": "99"}])
def test_an_episode_that_differs_in_anything_is_another(usual, tmp_path, capsys, changes):
    other = checkpoint(tmp_path / "other", changed_copy(tmp_path / "data", **changes), "task.max_steps=7")
    assert main(["compare", usual, other, "--out", str(tmp_path / "out")]) == 2
    assert "with other episodes and max_steps 7 instead of 3" in capsys.readouterr().err


def test_each_its_own_is_compared_on_request_and_told(usual, tmp_path, capsys):
    other = checkpoint(tmp_path / "other", "task.success_distance=3.0")
    answer = compared(tmp_path, usual, other, "--each-its-own")
    assert [row["name"] for row in answer["rows"]] == ["usual", "other*"] and answer["differences"].keys() == {"other"}
    line = "* other is measured with success_distance 3.0 instead of 0.2, unlike usual"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "report.html").read_text()
    assert "other*" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize("order", [("random", "RUN"), ("RUN", "random"), ("goal-follower", "random", "RUN")])
def test_controls_are_measured_as_the_first_run_wherever_they_stand(usual, tmp_path, order):
    answer = compared(tmp_path, *(usual if text == "RUN" else text for text in order))
    names = [Path(usual).name if text == "RUN" else text for text in order]
    assert [row["name"] for row in answer["rows"]] == names and not answer["differences"]
    summaries = [json.loads((tmp_path / "out" / "evaluation" / name / "summary.json").read_text()) for name in names]
    assert all(summary["conditions"]["max_steps"] == 3 for summary in summaries)


def test_a_network_is_read_once_though_its_run_is_trained_on_or_gone(usual, tmp_path, monkeypatch):
    run = tmp_path / "run"
    first = shutil.copytree(usual, run / "checkpoints" / f"{8:012}")
    (first / "metrics.json").write_text('{"frames": 8, "best_frames": 8}')
    evaluated, latest = compare.run_evaluation, run / "checkpoints" / f"{16:012}"

    def train_on(*arguments, **options):
        if first.exists():
            first.rename(latest)
        return evaluated(*arguments, **options)

    monkeypatch.setattr(compare, "run_evaluation", train_on)
    compared(tmp_path, usual, str(run))
    summary = json.loads((tmp_path / "out" / "evaluation" / "run" / "summary.json").read_text())
    assert summary["frames"] == 8 and summary["checkpoint"] == str(first) and summary["agent"] == str(run)


@pytest.mark.parametrize("command", ["evaluate", "compare", "prune"])
@pytest.mark.parametrize("place", ["file", "file/deeper", "file/deeper/still"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(usual, tmp_path, monkeypatch, capsys, command, place):
    def work(*_, **__):
        raise AssertionError("work that would be lost")

    for module, name in ((evaluate, "evaluate"), (compare, "run_evaluation"), (prune, "prune")):
        monkeypatch.setattr(module, name, work)
    (tmp_path / "file").write_text("mine")
    more = ["--method", "l1", "--budget", "macs=0.5"] if command == "prune" else []
    assert main([command, usual, *more, "--out", str(tmp_path / place)]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "file is a file; choose another folder" in said and ".trial" not in said


def test_what_an_agent_sees_and_where_episodes_lie_may_differ(usual, tmp_path):
    """So may what nothing reads, and the order of the scenes' files."""
    data = changed_copy(tmp_path / "data", info={"geodesic_distance": 1.0})
    seeing = ["task.width=64", "task.height=64", "agent.encoder=resnet18",
              "agent.base_planes=2", "task.max_depth=5.0"]  # fmt: skip
    other = checkpoint(tmp_path / "other", data, *seeing)
    answer = compared(tmp_path, usual, other)
    assert [row["name"] for row in answer["rows"]] == ["usual", "other"] and not answer["differences"]
    assert [bool(row["latency"]) for row in answer["rows"]] == [False, True]
    summaries = [json.loads((tmp_path / "out" / "evaluation" / name / "summary.json").read_text())["conditions"]
                 for name in ("usual", "other")]  # fmt: skip
    assert summaries[0] == summaries[1] and len(summaries[0]["episodes"]) == 64


def test_a_run_that_cannot_be_read_is_told_before_any_is_evaluated(usual, tmp_path, capsys):
    broken = Path(checkpoint(tmp_path / "broken"))
    (broken / "weights.safetensors").write_bytes(b"")
    assert main(["compare", usual, str(broken), "--out", str(tmp_path / "out")]) == 2
    assert "weights.safetensors" in capsys.readouterr().err and not (tmp_path / "out").exists()


# Several trainings of an agent ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Trainings: three of one agent, two of another, which has a larger memory."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in range(3):
        checkpoint(folder / f"small_s{seed}", seed=seed)
    for seed in range(2):
        checkpoint(folder / f"large_s{seed}", "agent.hidden_size=16", seed=seed)
    (folder / "small.log").write_text("what the shell kept of the output")
    return folder


def episodes_of(folder, *names):
    lines = [(folder / "out" / "evaluation" / name / "episodes.jsonl").read_text().splitlines() for name in names]
    return [[json.loads(line) for line in each] for each in lines]


def test_trainings_of_an_agent_are_one_row_and_are_held_against_the_first(seeds, tmp_path, capsys, monkeypatch):
    evaluated = compare.run_evaluation

    def as_if_learned(agent, config, **options):
        """Fresh agents fail everywhere: give each a little of its own."""
        result, shown = evaluated(agent, config, **options)
        of_the_agent = 0.1 * (sum(map(ord, Path(agent.source.text).name)) % 7)
        for number, record in enumerate(result.episodes):
            record["spl"] = of_the_agent + number % 3 / 10
        result.write_episodes(options["out"] / "episodes.jsonl")
        return result, shown

    monkeypatch.setattr(compare, "run_evaluation", as_if_learned)
    named = f"small={seeds}/small*", f"large={seeds}/large_s0", f"large={seeds}/large_s1"
    answer = compared(tmp_path, *named, "random", "--margin", "0.05")
    small, large, control = answer["rows"]
    runs = ["small_s0", "small_s1", "small_s2"]
    assert [row["name"] for row in answer["rows"]] == ["small", "large", "random"]
    assert [Path(run).name for run in small["runs"]] == runs and len(large["runs"]) == 2 and control["runs"] == []
    assert not answer["differences"]

    folders = [f"small/{run}" for run in runs], ["large/large_s0", "large/large_s1"]
    values = [np.array([[r["spl"] for r in run] for run in episodes_of(tmp_path, *names)]) for names in folders]
    spl = [row["evaluation"]["measures"]["spl"] for row in (small, large)]
    assert [each["mean"] for each in spl] == pytest.approx([each.mean() for each in values])
    assert spl[0]["low"] < values[0].mean(1).min() + 0.1 and spl[0]["high"] > spl[0]["mean"] > spl[0]["low"]

    comparisons = answer["comparisons"]
    assert comparisons["reference"] == "small" and comparisons["margin"] == 0.05
    for measure in ("spl", "success"):
        (each,) = comparisons["measures"][measure]  # a control is no encoder
        assert each["name"] == "large" and each.keys() == {"name", "difference", "improvement", "non_inferiority"}
    each = comparisons["measures"]["spl"][0]
    assert each["difference"]["mean"] == pytest.approx(values[1].mean() - values[0].mean())
    assert each["difference"]["low"] < each["difference"]["mean"] < each["difference"]["high"]

    said, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "table.md").read_text()
    for words in ("SPL against small", "worse by less than 0.05", "worst scene", "interquartile mean"):
        assert words in said and words in page and words in table
    assert "Of 2 or 3 runs" in said and "Of 2 or 3 runs" in page and "Of one run" not in said


def test_a_single_run_is_compared_as_one_of_several_would_be(seeds, tmp_path, capsys):
    first, second = compared(tmp_path, f"a={seeds}/small_s0", str(seeds / "small_s1"))["rows"]
    assert (first["name"], second["name"]) == ("a", "small_s1") and len(first["runs"]) == 1
    assert (tmp_path / "out" / "evaluation" / "a" / "summary.json").is_file()
    assert "Of one run" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "evaluation" / "a" / "summary.json").read_text())
    assert summary["measures"] == first["evaluation"]["measures"]


def test_trainings_of_one_name_are_of_one_architecture_and_not_twice_the_same(seeds, tmp_path, capsys):
    copy = shutil.copytree(seeds / "small_s1", tmp_path / "copy")
    for arguments, words in {
        (f"mixed={seeds}/*_s0",): "large_s0 and small_s0 differ in architecture",
        (f"agents={seeds}/small_s1", f"agents={copy}"): "small_s1 and copy of agents are the same network",
        ("agents=random", "agents=goal-follower"): "random and goal-follower differ in architecture",
        (f"agents={seeds}/none*",): "no run matches",
    }.items():
        assert main(["compare", *arguments, "--out", str(tmp_path / "out")]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert words in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", [[], ["--each-its-own"]])
def test_trainings_of_one_name_are_measured_alike_always(seeds, tmp_path, capsys, own):
    other = checkpoint(tmp_path / "other", "task.max_steps=4", seed=5)
    arguments = [str(seeds / "large_s0"), f"a={seeds}/small_s0", f"a={other}", "--out", str(tmp_path / "out"), *own]
    assert main(["compare", *arguments]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    first = "small_s0 of a" if own else "large_s0"
    assert f"other of a is measured with max_steps 4 instead of 3, unlike {first}" in said


def test_what_is_measured_otherwise_is_held_against_nothing(seeds, tmp_path):
    other = checkpoint(tmp_path / "other", "task.max_steps=4")
    three = str(seeds / "small_s0"), str(seeds / "large_s0"), other
    answer = compared(tmp_path, *three, "--each-its-own")
    assert [each["name"] for each in answer["comparisons"]["measures"]["spl"]] == ["large_s0"]
    assert compared(tmp_path, *three[::2], "--each-its-own")["comparisons"] == {}


@pytest.mark.parametrize(("options", "same"), [(["task.width=64"], True), (["--episodes", "2"], False)])
def test_a_summary_tells_what_was_measured(usual, tmp_path, options, same):
    for name, more in (("a", []), ("b", options)):
        assert main(["evaluate", usual, "--out", str(tmp_path / name), *more]) == 0
    first, second = (json.loads((tmp_path / name / "summary.json").read_text())["conditions"] for name in "ab")
    assert first["success_distance"] == 0.2 and first["simulator"] == "embedded"
    assert (first == second) == same
