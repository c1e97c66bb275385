"""The commands end to end on one tiny data set, and the messages for a user's mistakes."""

import functools
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from navprune.cli import main
from navprune.commands import benchmark
from navprune.scenes.homes.dataset import generate_dataset

REFERENCE = Path(__file__).parent / "data" / "reference"
TINY = [
    "task.width=32", "task.height=32", "task.max_steps=30", "agent.encoder=resnet18", "agent.base_planes=4",
    "agent.visual_features=16", "agent.hidden_size=16", "environments=2", "ppo.steps=16",
    "ppo.minibatches=2", "warm_start=null", "trainer.total_frames=64", "data.name=reference", "data.train=val",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "data"
    shutil.copytree(REFERENCE, folder)
    return folder


@pytest.fixture(scope="module")
def run(data):
    folder = data.parent / "run"
    assert main(["train", "--config", "pointnav", f"run={folder}", f"data.folder={data}", *TINY]) == 0
    return folder


def answer(tmp_path, *arguments):
    file = tmp_path / "answer.json"
    assert main([*map(str, arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text())


def mistake(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("navprune: ")
    return error


@pytest.mark.parametrize(
    ("encoder", "macs", "parameters"), [("resnet50", 1.2310, 5.5913), ("resnet18", 0.5396, 2.6617)]
)
def test_cost_is_the_published_one(tmp_path, encoder, macs, parameters):
    result = answer(tmp_path, "cost", encoder)
    assert result["table1"] == {"macs_gi": macs, "parameters_mi": parameters}
    assert result["deployed"]["macs"] > 0
    assert result["input"] == [1, 256, 256]


def test_cost_of_a_classifier_is_also_thops(tmp_path, capsys):
    result = answer(tmp_path, "cost", "vgg16_bn", "--layers")
    assert result["thop"] == {"operations": 15_507_270_656, "parameters": 134_678_692} and "table1" not in result
    assert "classifier.6" in capsys.readouterr().out


def test_train_evaluate_prune_compare(run, data, tmp_path):
    result = answer(tmp_path, "evaluate", run, "--episodes", 4, "--pictures", "apartment:2", "--out", tmp_path / "val")
    assert result["episodes"] == 4
    assert set(result["measures"]["spl"]) == {"mean", "low", "high"}
    assert len((tmp_path / "val" / "episodes.jsonl").read_text().splitlines()) == 4
    assert [path.name for path in (tmp_path / "val").glob("*_map.png")] == ["apartment_2_map.png"]
    slim = tmp_path / "slim"
    pruned = answer(tmp_path, "prune", run, "--method", "magnitude", "--budget", "macs=0.6", "--out", slim)
    assert 0 < pruned["after"]["table1"]["macs_gi"] <= 0.6 * pruned["before"]["table1"]["macs_gi"] + 1e-4
    again = data.parent / "slim_run"
    settings = [f"run={again}", f"data.folder={data}", *TINY, f"init={slim}", "init_weights=false"]
    assert main(["train", *settings]) == 0
    compared = answer(tmp_path, "compare", run, again, "--out", tmp_path / "page", "--pictures", "0")
    assert [row["name"] for row in compared["rows"]] == ["run", "slim_run"]
    assert "slim_run" in (tmp_path / "page" / "report.html").read_text()


def test_gates_are_learned_on_the_task(data, tmp_path):
    settings = [f"data.folder={data}", *TINY, "agent.base_planes=8", "--steps", "60", "--epochs", "1"]
    arguments = ["prune", "resnet50", *settings]
    result = answer(tmp_path, *arguments, "--budget", "macs=0.5", "--out", tmp_path / "slim")
    assert result["method"] == "gates"
    assert result["widths"]["stage3.block2.conv1"][1] >= 1


def test_latency_rows_compare_with_the_first(run, tmp_path):
    rows = answer(tmp_path, "latency", run, "simple_cnn", "--batch-sizes", "1,2", "--runs", 3)["rows"]
    assert [(row["model"], row["batch_size"]) for row in rows] == [
        ("run", 1),
        ("simple_cnn", 1),
        ("run", 2),
        ("simple_cnn", 2),
    ]
    assert rows[0]["saving_realised"] == 0


def test_why_a_runtime_was_not_measured_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr("navprune.costs.runtimes.pytorch.compile_fault", lambda: "it needs a C++ compiler")
    assert main(["latency", "simple_cnn", "resnet18", "--runtime", "compiled", "--runs", "1"]) == 0
    assert capsys.readouterr().err.count("compiled: it needs a C++ compiler") == 1


def test_latency_of_all_kinds_with_threads(tmp_path):
    words = ["latency", "cifar_resnet56", "simple_cnn", "--runtime", "eager,onnxruntime", "--threads", 1]
    found = answer(tmp_path, *words, "--device", "cpu", "--batch-sizes", 1, "--runs", 2)
    assert found["device"].endswith(", 1 threads") and found["versions"]["eager"].startswith("torch ")
    rows = [(row["model"], row["runtime"], row["note"]) for row in found["rows"] if row["median_ms"]]
    runtimes = ["eager", *(["onnxruntime"] if "onnxruntime" in found["versions"] else [])]
    assert rows == [(name, runtime, "") for runtime in runtimes for name in ("cifar_resnet56", "simple_cnn")]


def test_latency_of_whole_steps(run, tmp_path, capsys):
    words = ["--step", "--runtime", "eager,onnxruntime", "--device", "cpu", "--batch-sizes", 1, "--runs", 2]
    found = answer(tmp_path, "latency", run, "blind", *words)
    assert all(row["median_ms"] for row in found["rows"] if row["runtime"] in found["versions"])
    assert found["rows"][1]["saving_theoretical"] < 1  # its recurrent core counts
    assert "cifar_resnet56 is a classifier: leave it out" in mistake(capsys, "latency", "cifar_resnet56", "--step")


def test_wrong_runtimes_and_devices_are_told_in_one_line(capsys):
    assert "unknown runtime 'tvm'; known are eager" in mistake(
        capsys, "latency", "simple_cnn", "--runtime", "eager,tvm"
    )
    assert "--device tpu cannot be used here" in mistake(capsys, "latency", "simple_cnn", "--device", "tpu")


def test_generate_then_doctor(tmp_path):
    result = answer(tmp_path, "scenes", "generate", "--out", tmp_path / "d", "--train", 1, "--val", 1,
                    "--train-episodes", 5, "--val-episodes", 3, "--area", 40, 90)  # fmt: skip
    assert result["splits"]["val"]["episodes"] == 3
    findings = answer(tmp_path, "doctor", "--data", tmp_path / "d")["findings"]
    assert {"homes v1 train", "homes v1 val"} <= {finding["name"] for finding in findings if finding["ok"]}
    next((tmp_path / "d" / "scene_datasets" / "homes").glob("*.navmesh")).unlink()
    findings = answer(tmp_path, "doctor", "--data", tmp_path / "d")["findings"]
    assert any(not f["ok"] and "missing" in f["found"] for f in findings if f["name"].startswith("homes"))


def test_style_and_density_of_generated_homes_are_checked(tmp_path, capsys):
    arguments = ["scenes", "generate", "--out", tmp_path / "d", "--density", 5]
    assert "density 5 is not within 2000 to 40000" in mistake(capsys, *arguments, "--style", "scan")
    assert "plain homes have no density" in mistake(capsys, *arguments)
    with pytest.raises(SystemExit):
        main([*map(str, arguments), "--style", "sketch"])


def test_parity_with_the_recorded_answers(tmp_path):
    result = answer(tmp_path, "parity", REFERENCE, "--scenes", "duplex")
    assert result["scenes"]["duplex"]["rollouts"]["free"]["spl"] == 1


def test_parity_that_misses_a_figure_ends_with_1(tmp_path, capsys):
    folder = tmp_path / "reference"
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("*_images.npz", "*_rollouts.json.gz", "policy"))
    file = folder / "expected" / "duplex_navigation.json"
    answers = json.loads(file.read_text())
    for entry in answers["snap"]:
        entry["navigable"] = not entry["navigable"]
    file.write_text(json.dumps(answers))
    arguments = ["parity", str(folder), "--scenes", "duplex", "--json", str(tmp_path / "parity.json")]
    assert main(arguments) == 1
    assert "missed: duplex: navigable is 0" in capsys.readouterr().out
    assert json.loads((tmp_path / "parity.json").read_text())["scenes"]["duplex"]["navigable"] == 0
    file.write_text("{}")
    assert main(arguments) == 1
    assert "failed: duplex: " in capsys.readouterr().out


def test_scenes_that_fail_do_not_keep_others_from_their_navmesh(tmp_path, capsys):
    scenes = [tmp_path / f"{name}.glb" for name in ("broken", "made", "duplex")]
    scenes[0].write_bytes(b"glTF")
    shutil.copy(REFERENCE / "scene_datasets" / "reference" / "duplex.glb", scenes[1])
    scenes[1].with_suffix(".navmesh").write_bytes(b"of the user")
    shutil.copy(scenes[1], scenes[2])
    assert main(["scenes", "navmesh", *map(str, scenes), "--json", str(tmp_path / "a.json")]) == 2
    printed, told = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert [Path(row["path"]).name for row in told["scenes"]] == ["duplex.navmesh"] and "duplex.navmesh" in printed
    assert [Path(row["path"]).name for row in told["failed"]] == ["broken.glb", "made.glb"]
    assert "damaged" in told["failed"][0]["reason"] and "exists already" in told["failed"][1]["reason"]
    assert scenes[1].with_suffix(".navmesh").read_bytes() == b"of the user"


def test_a_navmesh_is_built_beside_its_scene(tmp_path, capsys):
    scene = tmp_path / "duplex.glb"
    shutil.copy(REFERENCE / "scene_datasets" / "reference" / "duplex.glb", scene)
    first = answer(tmp_path, "scenes", "navmesh", scene)["scenes"][0]
    assert Path(first["path"]) == scene.with_suffix(".navmesh") and first["area"] == pytest.approx(94.48, rel=1e-3)
    assert "exists already" in mistake(capsys, "scenes", "navmesh", scene)
    assert "from 0 to 90" in mistake(capsys, "scenes", "navmesh", scene, "--overwrite", "--agent-max-slope", 400)
    wider = answer(tmp_path, "scenes", "navmesh", scene, "--overwrite", "--agent-radius", 0.2)["scenes"][0]
    assert wider["area"] < first["area"]


@pytest.mark.parametrize(("there", "asked"), [("d.glb", "d.basis.glb"), ("d.basis.glb", "d.glb")])
def test_a_navmesh_is_built_for_a_scene_by_either_of_its_names(tmp_path, capsys, there, asked):
    shutil.copy(REFERENCE / "scene_datasets" / "reference" / "duplex.glb", tmp_path / there)
    first = answer(tmp_path, "scenes", "navmesh", tmp_path / asked)["scenes"][0]
    assert Path(first["path"]) == (tmp_path / there).with_suffix(".navmesh") and Path(first["path"]).is_file()
    assert "exists already" in mistake(capsys, "scenes", "navmesh", tmp_path / asked)
    assert "other.glb" in mistake(capsys, "scenes", "navmesh", tmp_path / "other.glb")


def test_a_dense_policy_is_exported_and_a_pruned_one_is_not(tmp_path, capsys):
    published = REFERENCE / "policy" / "depth_resnet18_gru1.pth"
    result = answer(tmp_path, "export", published, "--out", tmp_path / "a.pth")
    assert answer(tmp_path, "export", result["out"], "--out", tmp_path / "b.pth")["spec"] == result["spec"]
    assert main(["export", str(published), "--out", str(tmp_path / "d.pth"), "--json", str(tmp_path / "d.json")]) == 0
    assert answer(tmp_path, "export", tmp_path / "d.pth", "--out", tmp_path / "d.pth")["spec"] == result["spec"]
    assert "another name" in mistake(
        capsys, "export", published, "--out", tmp_path / "d.pth", "--json", tmp_path / "d.pth.json"
    )
    for option in ("--out", "--json"):
        assert "is a folder" in mistake(capsys, "export", published, "--out", tmp_path / "e.pth", option, ".")
    pruned = Path(__file__).parents[1] / "checkpoints" / "resnet50-pruned"
    assert "only a dense one" in mistake(capsys, "export", pruned, "--out", tmp_path / "c.pth")


def test_an_exported_policy_is_evaluated_and_compared_as_its_run(run, data, tmp_path, capsys):
    file = tmp_path / "agent.onnx"
    told = answer(tmp_path, "export", run, "--format", "onnx", "--out", file)
    assert told["format"] == "onnx" and told["check"]["steps"] == 500
    result = answer(tmp_path, "evaluate", file, "--episodes", 4, "--against", run, "--out", tmp_path / "val")
    assert result["against"]["differing"] == [] and result["against"]["steps"] >= 4
    assert json.loads((tmp_path / "val" / "summary.json").read_text())["agent"] == str(file)
    eager = answer(tmp_path, "evaluate", run, "--episodes", 4, "--out", tmp_path / "eager")
    assert eager["measures"] == result["measures"] and "against" not in eager
    compared = answer(tmp_path, "compare", run, file, "--out", tmp_path / "page", "--pictures", "0")
    first, second = compared["rows"]
    assert first["evaluation"]["measures"] == second["evaluation"]["measures"] and compared["comparisons"]
    capsys.readouterr()
    assert "two networks" in mistake(capsys, "evaluate", file, "--against", "random", "--episodes", 1)
    assert "only runs" in mistake(
        capsys, "prune", file, "--method", "l1", "--budget", "macs=0.5", "--out", tmp_path / "p"
    )
    calibrated = "export", run, "--format", "onnx", "--calibration-steps", 9, "--out", file
    assert "is for --int8" in mistake(capsys, *calibrated)
    assert "weights alone" in mistake(capsys, "export", run, "--int8", "--out", tmp_path / "a.pth")


def test_agents_are_looked_for_before_data(tmp_path, capsys):
    for missing in ("missing.pth", "runs/missing"):
        assert "missing" in mistake(capsys, "evaluate", tmp_path / missing, f"data.folder={tmp_path}")


def test_policies_of_any_image_size_are_exported_and_read_again(tmp_path):
    from navprune.models.build import build
    from navprune.models.spec import PolicySpec, encoder_spec
    from navprune.rl.checkpoints import save_checkpoint

    policy = build(PolicySpec(encoder_spec("resnet18", (1, 96, 160), 8), 16, 16))
    source = save_checkpoint(tmp_path / "source", policy)
    for _ in range(2):
        spec = answer(tmp_path, "export", source, "--out", tmp_path / "a.pth")["spec"]
        assert spec["encoder"]["input"] == [1, 96, 160]
        source = tmp_path / "a.pth"


def test_help_answers_and_lists_every_pruning_method():
    out = subprocess.run([sys.executable, "-m", "navprune.cli", "prune", "--help"], capture_output=True, text=True)
    assert out.returncode == 0
    assert all(method in out.stdout for method in ("gates", "magnitude", "random", "uniform"))


def test_benchmarks_report_rates_and_phases(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark.DENSITIES, "scan", 2000)
    small = functools.partial(generate_dataset, area=(40.0, 60.0))
    monkeypatch.setattr("navprune.commands.benchmark.generate_dataset", small)
    arguments = ["--widths", "16", "--environments", 2, "--frames", 400]
    result = answer(tmp_path, "benchmark", "simulator", *arguments)
    plain, scan = result["rows"]
    assert (plain["style"], scan["style"]) == ("plain", "scan") and plain["scene"] == scan["scene"]
    assert 20_000 <= plain["triangles"] < scan["triangles"] and plain["frames_per_second"] > 0
    assert len(result["memory_mib"]) == 2
    monkeypatch.setattr("navprune.commands.train.cores", lambda: 3)
    arguments = ["--base-planes", 4, "--width", 32, "--environments", 4, "--epochs", 1, "--updates", 1]
    rows = answer(tmp_path, "benchmark", "training", *arguments)["rows"]
    assert [row["workers"] for row in rows] == [1, 2]  # and not 3, which cannot share 4 environments
    for row in rows:
        assert 0 < row["network_share"] < 1 and row["frames_per_second"] > 0
        assert {"policy", "learn", "environment"} <= set(row["seconds"])


def test_settings_may_stand_anywhere_and_options_must_be_known(data, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--confg", "demo"])
    assert "--confg" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cost", "resnet18", "task.width=3"])
    assert main(["evaluate", "random", "task.width=8", "--episodes", "2", f"data.folder={data}", "task.height=8",
                 "data.name=reference", "--out", str(data.parent / "random")]) == 0  # fmt: skip


def test_two_runs_of_one_name_are_told_apart(run, tmp_path):
    rows = answer(tmp_path, "latency", run / "latest", run / "best", "--batch-sizes", 1, "--runs", 2)["rows"]
    assert len({row["model"] for row in rows}) == 2
    assert main(["latency", str(run), str(run)]) == 2


class TestMistakes:
    def evaluate(self, capsys, data, *more):
        settings = [f"data.folder={data}", "data.name=reference", "task.width=8", "task.height=8"]
        return mistake(capsys, "evaluate", "random", *settings, *more)

    @pytest.fixture
    def broken(self, data, tmp_path):
        shutil.copytree(data, tmp_path / "data")
        return tmp_path / "data"

    def change_episode(self, broken, **changes):
        file = broken / "datasets" / "pointnav" / "reference" / "v1" / "val" / "content" / "apartment.json.gz"
        content = json.loads(gzip.decompress(file.read_bytes()))
        content["episodes"][0] |= changes
        file.write_bytes(gzip.compress(json.dumps(content).encode()))

    def test_missing_split(self, capsys, data):
        assert "train" in self.evaluate(capsys, data, "--split", "train")

    def test_missing_scene(self, capsys, broken):
        (broken / "scene_datasets" / "reference" / "apartment.glb").unlink()
        assert "apartment.glb" in self.evaluate(capsys, broken)

    def test_missing_navmesh(self, capsys, broken):
        (broken / "scene_datasets" / "reference" / "apartment.navmesh").unlink()
        assert "apartment.navmesh" in self.evaluate(capsys, broken)

    @pytest.mark.parametrize("name", ["apartment.navmesh", "apartment.glb"])
    def test_cut_off_scene_files(self, capsys, broken, name):
        file = broken / "scene_datasets" / "reference" / name
        file.write_bytes(file.read_bytes()[:1000])
        assert name in self.evaluate(capsys, broken)

    def test_a_glb_that_is_not_gltf(self, capsys, broken):
        (broken / "scene_datasets" / "reference" / "apartment.glb").write_text("nothing of the kind")
        assert "apartment.glb" in self.evaluate(capsys, broken)

    def test_cut_off_episodes(self, capsys, broken):
        file = broken / "datasets" / "pointnav" / "reference" / "v1" / "val" / "content" / "apartment.json.gz"
        file.write_bytes(file.read_bytes()[:500])
        assert "apartment.json.gz" in self.evaluate(capsys, broken)

    def test_start_off_the_navmesh(self, capsys, broken):
        self.change_episode(broken, start_position=[500.0, 0.0, 500.0])
        assert "off the navmesh" in self.evaluate(capsys, broken)

    def test_unreachable_goal(self, capsys, broken):
        self.change_episode(broken, goals=[{"position": [500.0, 0.0, 500.0], "radius": 0.2}])
        assert "cannot be reached" in self.evaluate(capsys, broken)

    def test_truncated_checkpoint(self, capsys, run, tmp_path):
        shutil.copytree((run / "latest").resolve(), tmp_path / "checkpoint")
        weights = tmp_path / "checkpoint" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        assert "weights.safetensors" in mistake(capsys, "evaluate", tmp_path / "checkpoint")

    def test_checkpoint_of_another_spec(self, capsys, run, data):
        error = mistake(capsys, "train", f"run={run}", f"data.folder={data}", *TINY, "agent.hidden_size=24")
        assert "another spec" in error

    def test_checkpoint_for_other_images(self, capsys, run):
        assert "task.width=32" in mistake(capsys, "evaluate", run, "task.width=64")

    def test_no_checkpoint(self, capsys, tmp_path):
        assert "there is no file or folder" in mistake(capsys, "cost", tmp_path / "nowhere")

    @pytest.mark.parametrize("budget", ["macs=0", "macs=1.5", "flops=0.5", "macs"])
    def test_budget(self, capsys, tmp_path, budget):
        error = mistake(capsys, "prune", "resnet18", "--method", "uniform", "--budget", budget, "--out", tmp_path / "x")
        assert budget.partition("=")[0] in error
        assert not (tmp_path / "x").exists()

    def test_unknown_episode(self, capsys, data):
        assert "apartment:99" in self.evaluate(capsys, data, "--pictures", "apartment:99")

    def test_unknown_key(self, capsys):
        assert "did you mean task.width" in mistake(capsys, "train", "task.widht=3")
