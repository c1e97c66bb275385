"""What is written of experiments is what was measured."""

import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clocks import Machine

from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.evaluation.evaluate import Evaluation
from navprune.models.spec import EncoderSpec, encoder_spec

FOLDER = Path(__file__).parents[1] / "experiments" / "pruning_methods"


@pytest.fixture(scope="module")
def experiment():
    """The modules figure and grid."""
    return tuple(importlib.import_module(f"experiments.pruning_methods.{name}") for name in ("figure", "grid"))


def test_comparisons_are_of_the_same_seeds(experiment):
    figure, _ = experiment
    first, second = {0: np.array([1.0, 0.5]), 2: np.array([0.5, 0.5])}, {1: np.zeros(2), 2: np.array([0.25, 0.5])}
    assert figure.paired(first, second).tolist() == [[0.25, 0.0]]
    assert figure.paired(first, {1: np.zeros(2)}) is None


def test_every_record_is_of_a_cell_and_of_the_same_episodes(experiment):
    _, grid = experiment
    records, cells = grid.read_results(), set(grid.grid())
    assert records.keys() <= cells and len(grid.grid()) == len(cells)
    assert {len(record["spl"]) for record in records.values() if "spl" in record} == {120}
    for record in records.values():
        if same := record.get("same_as"):
            twin = records[grid.Cell(**same)]
            assert (twin["spl"], twin["weights"]) == (record["spl"], record["weights"])


def test_the_readme_says_what_was_measured(experiment):
    figure, grid = experiment
    written, records = (FOLDER / "README.md").read_text(), grid.read_results()
    for protocol in grid.PROTOCOLS:
        if found := figure.measured(records, protocol):
            spreads = {network: figure.spread_of(seeds) for network, seeds in found.items()}
            assert figure.table(found, spreads, records, protocol) in written


def test_a_table_takes_the_place_of_the_one_before(experiment):
    figure, _ = experiment
    text = "Before.\n\n| cut | 25 % |\n|---|---|\n| l1 | old |\n\nBehind.\n"
    new = "| cut | 25 % |\n|---|---|\n| l1 | new |\n| l2 | new |\n"
    assert figure.renewed(text, new) == f"Before.\n\n{new}\nBehind.\n"
    assert figure.renewed(figure.renewed(text, new), new) == figure.renewed(text, new)


# What an image takes --------------------------------------------------------------------------------

SPEED = FOLDER.parent / "simulator_speed"


def speed(name):
    """A module of that experiment, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"simulator_speed_{name}", SPEED / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_of_images_says_what_was_measured():
    assert speed("figure").table(json.loads((SPEED / "results.json").read_text())) in (SPEED / "README.md").read_text()


def test_a_home_and_its_scan_are_looked_at_from_the_same_places():
    scenes = speed("scenes")
    plan = scenes.make_plan(40.0)
    places = scenes.look_from(plan, 5)
    plain, scan = scenes.triangles_of(plan, None), scenes.triangles_of(plan, 2000)
    assert len(scan) > 2 * len(plain)
    for triangles in (plain, scan):
        low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
        assert ((low < places.eyes) & (places.eyes < high)).all()
    assert np.allclose(np.linalg.norm(places.rotations, axis=1), 1)


# Latency ------------------------------------------------------------------------------------------------

TINY = "--size", "64", "--base", "8", "--networks", "4", "--repeats", "1"
LATENCY = "latency_cpu", "latency_gpu"
MODELS = {"ResNet50", "uniform", "ResNet18", "probe macs=0.5", "probe latency=0.5"}


def latency(name, module="run"):
    """A module of one of these experiments, which lie in a namespace package."""
    return importlib.import_module(f"experiments.{name}.{module}")


@pytest.fixture
def searches(monkeypatch):
    """Searches that take no time: uniform at half, whatever is asked for; the runtimes and budgets that were asked."""
    networks, asked = latency("latency_cpu", "networks"), []

    def search(probes, setting, runtime, budget, *, fresh):
        asked.append((runtime, budget, fresh))
        times = {"dense_ms": 2.0, "predicted_ms": 1.0, "measured_ms": 1.0, "importance_kept": 0.5, "error": 0.0}
        return times | {
            "seconds": 1.0,
            "fresh": fresh,
            "reached": {"macs": 0.5, "latency": 0.5},
            "spec": half.to_json(),
        }

    half = networks.Setting(64, 8).uniform()
    monkeypatch.setattr(networks.Probes, "search", search)
    return asked


def test_a_search_tells_what_it_predicted_measured_and_took(monkeypatch, tmp_path):
    networks = latency("latency_cpu", "networks")
    monkeypatch.setattr(networks, "Timer", Machine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(networks.Setting, "encoder", lambda _: encoder_spec("resnet18", (1, 128, 128), 8))  # is quicker
    probes, setting = networks.Probes(torch.device("cpu"), 8, 300.0), networks.Setting()
    row = probes.search(setting, "eager", "latency=0.6", fresh=True)
    assert row["reached"]["latency"] <= 0.6 and row["seconds"] > 0 and row["fresh"]
    assert row["measured_ms"] == pytest.approx(row["dense_ms"] * row["reached"]["latency"])
    assert cost(EncoderSpec.from_json(row["spec"])).macs < cost(setting.encoder()).macs


@pytest.mark.parametrize("name", LATENCY)
def test_the_readme_of_latency_says_what_was_measured(name):
    table, folder = latency("latency_cpu", "table"), FOLDER.parent / name
    written = (folder / "README.md").read_text()
    assert (
        table.renewed(written, table.page(latency("latency_cpu", "networks").read_rows(folder / "results.jsonl")))
        == written
    )


def test_all_steps_on_a_cpu_end_in_a_page_and_are_done_once(searches, tmp_path, monkeypatch):
    run, table, out = latency("latency_cpu"), latency("latency_cpu", "table"), tmp_path / "out"
    monkeypatch.setattr(run, "THREADS", (1,))  # more would wait for each other where tests have few cores
    arguments = [*TINY, "--runtimes", "eager,cuda-graphs", "--out", str(out)]
    run.main(arguments)
    rows = table.read_rows(out / "results.jsonl")
    page = (out / "README.md").read_text()
    assert all(f"### {title}\n" in page for title, step, _ in table.SECTIONS if step != "spl")
    assert (out / "frontier.png").stat().st_size and "Left out: cuda-graphs" in page
    timed = {(row["model"], row["batch_size"]) for row in table.of(rows, "table")}
    assert timed == {(model, size) for model in MODELS for size in (1, 8)}
    assert [fresh for *_, fresh in searches] == [True] + [False] * (len(searches) - 1)
    assert len(searches) == len({row["budget"] for row in table.of(rows, "search")})
    run.main(arguments)
    assert table.read_rows(out / "results.jsonl") == rows


def test_results_of_another_setting_are_not_added_to(tmp_path):
    networks, cpu = latency("latency_cpu", "networks"), torch.device("cpu")
    path = tmp_path / "results.jsonl"
    networks.Results(path, networks.Setting(64, 8), ["eager"], cpu).put("table", [], runtime="eager")
    networks.Results(path, networks.Setting(64, 8), ["eager"], cpu)
    with pytest.raises(UserError, match=r"another machine, versions or setting.*move it away"):
        networks.Results(path, networks.Setting(128, 8), ["eager"], cpu)


def test_the_table_of_gpus_is_tried_on_a_cpu_and_goes_on(searches, tmp_path, capsys):
    run, table = latency("latency_gpu"), latency("latency_cpu", "table")
    arguments = [
        *TINY,
        "--device",
        "cpu",
        "--batch-sizes",
        "1,2",
        "--runtimes",
        "eager,tensorrt",
        "--out",
        str(tmp_path),
    ]
    run.main([*arguments, "--seconds", "0"])
    assert not searches and "no time for eager, batch 2" in capsys.readouterr().err
    run.main(arguments)
    timed = table.of(table.read_rows(tmp_path / "results.jsonl"), "table")
    assert {(row["model"], row["batch_size"]) for row in timed} == {
        (model, size) for model in MODELS for size in (1, 2)
    }
    assert "Left out: tensorrt" in (tmp_path / "README.md").read_text()


def test_fixed_networks_save_what_they_are_called_by():
    setting = latency("latency_cpu", "networks").Setting()
    fixed = setting.fixed()
    dense = cost(fixed.pop("ResNet50")).table1_macs
    assert {name: cost(spec).table1_macs / dense for name, spec in fixed.items()} == {
        "uniform": pytest.approx(0.5, abs=0.01),
        "gates": pytest.approx(0.488, abs=0.01),
        "ResNet18": pytest.approx(0.44, abs=0.05),
    }
    kept = [setting.kept(spec) for spec in (setting.uniform(0.25), fixed["uniform"], setting.encoder())]
    assert kept == sorted(kept) and kept[-1] == 1


def test_agents_are_rows_of_spl_and_milliseconds(tmp_path, monkeypatch):
    spl = latency("latency_cpu", "spl")
    asked = []

    def evaluated(agent, config, *, split):
        asked.append(agent.source.text)
        episode = {"scene": "home", "episode_id": "0", "spl": 0.5}
        return Evaluation([episode], {"spl": {"mean": 0.5, "low": 0.25, "high": 0.75}}, 1.0), []

    monkeypatch.setattr(spl, "run_evaluation", evaluated)
    for run in ("a_s1", "a_s2"):
        shutil.copytree(FOLDER / "agent", tmp_path / run)
    arguments = [f"small={tmp_path}/a_s*", "--runtime", "eager", "--repeats", "1", "--out", str(tmp_path)]
    spl.main(arguments)
    spl.main(arguments)
    assert len(asked) == 2  # and not again
    page = (tmp_path / "README.md").read_text()
    assert page.count("| small | a_s") == 2 and page.count("0.250 to 0.750") == 2
    assert (tmp_path / "spl.png").stat().st_size
