"""`navprune prune --masks`: masked checkpoints of agents and classifiers, and training that begins with one."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from labelled_images import npz
from pruning.test_masked import held

from navprune.cli import main
from navprune.commands.compare import pruning_of
from navprune.pruning.config import MASKS
from navprune.pruning.masks import STRATEGIES
from navprune.pruning.methods import MODULES
from navprune.pruning.prune import weights_hash
from navprune.rl.checkpoints import find_checkpoint, load_network, read_masks
from navprune.source import Source

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
AGENT = [
    "resnet18", f"data.folder={REFERENCE}", "data.name=reference", "data.train=val", "data.scenes=[apartment]",
    "task.width=32", "task.height=32", "task.max_steps=20", "agent.base_planes=4", "agent.visual_features=16",
    "agent.hidden_size=16", "environments=2", "ppo.steps=16", "ppo.epochs=1", "trainer.total_frames=64",
    "trainer.checkpoint_seconds=0", "trainer.device=cpu", "trainer.workers=1",
]  # fmt: skip
CLASSIFIER = [
    "cifar_resnet20", "--config", "digits_resnet20", "classifier.width=0.25", "images.validation=0",
    "supervised.batch=8", "supervised.epochs=1", "trainer.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory):
    """The file of images that the classifier's configuration names."""
    CLASSIFIER.append(f"images.source={npz(tmp_path_factory.mktemp('images') / 'set.npz', 32, 4, (3, 8, 8))}")
    yield
    CLASSIFIER.pop()


def prune(source, masks, compression, out, *more):
    return main(["prune", *source, "--masks", masks, "--compression", compression, "--out", str(out), *more])


def mistake(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("navprune: ")]
    return error


def test_help_names_the_strategies_there_are(capsys):
    single = {name for name in MASKS if "METHOD" not in name}
    assert single | {f"structured-{name}" for name in MODULES["scores"]} == STRATEGIES.keys()
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in MASKS)


@pytest.mark.parametrize("name", ["global-magnitude", "layer-random", "structured-l1", "structured-taylor"])
def test_every_ratio_has_a_whole_checkpoint_with_its_masks(tmp_path, capsys, name):
    out, told = tmp_path / "masked", tmp_path / "told.json"
    looked = ["--batch-size", "8"] if name == "structured-taylor" else []
    for _ in range(2):  # the second time in place of the first
        assert prune(CLASSIFIER, name, "1.5,3", out, "--seed", "3", "--json", str(told), *looked) == 0
    said = capsys.readouterr().out
    initial = set()
    for ratio, checkpoint in zip((1.5, 3), json.loads(told.read_text())["checkpoints"], strict=True):
        folder = out / f"{ratio:g}"
        network, masks = load_network(folder), read_masks(folder)
        data = json.loads((folder / "pruning.json").read_text())
        assert checkpoint == {"folder": str(folder), **data}
        assert held(network, masks) and network.spec.classes == 4
        assert (data["method"], data["seed"], data["compression"]["asked"]) == (name, 3, ratio)
        assert ratio <= data["compression"]["reached"] <= 1.02 * ratio
        every, left = data["parameters"]
        assert every == sum(parameter.numel() for parameter in network.parameters())
        assert every / left == pytest.approx(data["compression"]["reached"])
        assert data["weights"] == {key: [mask.numel(), int(mask.sum())] for key, mask in masks.items()}
        assert data["theoretical_speedup"] > 1 and f"{ratio:g} " in said
        initial.add(data["initial_weights"])
    assert len(initial) == 1


@pytest.mark.parametrize("name", ["global-magnitude-gradient", "layer-magnitude-activation"])
@pytest.mark.parametrize("source", [AGENT, CLASSIFIER], ids=["agent", "classifier"])
def test_what_single_weights_are_worth_on_a_batch_reaches_all_layers(tmp_path, capsys, source, name):
    looked = ["--batch-size", "8"] if source is CLASSIFIER else []
    out = tmp_path / "masked"
    assert prune(source, name, "1.2", out, *looked) == 0
    assert f"{name}  1 of 1 batches" in capsys.readouterr().err
    masks = read_masks(out)
    assert held(load_network(out), masks)
    weights = {key: mask for key, mask in masks.items() if key.endswith("weight")}
    assert all(mask.any() for mask in weights.values()) and not all(mask.all() for mask in weights.values())


def test_training_goes_on_under_the_masks_by_the_command_that_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prune(CLASSIFIER, "global-magnitude", "4", "masked") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    masks = read_masks(Path("masked"))
    assert prune(CLASSIFIER, "global-magnitude", "1", "early", "--seed", "5") == 0  # which masks nothing
    runs = {"tuned": [], "fresh": ["init_weights=false"], "rewound": ["pruning.rewind=early"]}
    for name, more in runs.items():
        assert main([*words[1:], f"run={name}", "trainer.seed=5", *more]) == 0
        latest = find_checkpoint(name)
        assert held(load_network(latest), masks)
        assert all(mask.equal(masks[key]) for key, mask in read_masks(latest).items()) and read_masks(latest)
    tuned, fresh, rewound = (weights_hash(load_network(name)) for name in runs)
    assert tuned != fresh == rewound
    source = Source.parse("tuned")
    assert pruning_of(source, source.config()) is None  # no width is cut


def test_an_agent_trains_under_masks_without_a_warm_start(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prune(AGENT, "global-random", "1.3", "masked", "warm_start.frames=32") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])[1:]
    assert words.pop() == "warm_start=null"
    assert mistake(capsys, *words).endswith("masked has masks, which the warm start does not hold; set warm_start=null")
    cuts = ["warm_start=null", "pruning.budget=macs=0.5"]
    assert "masks, under which nothing is cut; leave pruning.budget out" in mistake(capsys, *words, *cuts)
    assert not Path("masked_run").exists()
    assert main([*words, "warm_start=null"]) == 0
    assert held(load_network("masked_run"), read_masks(find_checkpoint("masked_run")))


def test_masks_of_a_source_that_do_not_last_are_told(tmp_path, capsys):
    masked, other = tmp_path / "masked", tmp_path / "other"
    assert prune(CLASSIFIER, "global-magnitude", "2", masked) == 0
    assert prune([str(masked)], "global-magnitude", "4", other) == 0  # zeros are the smallest
    assert "masks of" not in capsys.readouterr().err
    assert prune([str(masked)], "global-random", "2", other) == 0
    assert f"masks of {masked} are replaced: up to " in capsys.readouterr().err
    assert main(["prune", str(masked), "--method", "l1", "--budget", "macs=0.5", "--out", str(other)]) == 0
    assert f"masks of {masked} are left behind" in capsys.readouterr().err and not read_masks(other)


def test_labelled_images_of_a_file_go_before_those_of_the_configuration(tmp_path):
    more = ["--images", str(npz(tmp_path / "other.npz", 30, 3)), "--batch-size", "8"]
    assert prune(CLASSIFIER, "global-magnitude-gradient", "2", tmp_path / "masked", *more) == 0
    spec = load_network(tmp_path / "masked").spec
    assert (spec.input, spec.classes) == ((1, 8, 8), 3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--masks best --compression 2", "unknown masks 'best'; known are global-magnitude, "),
        ("--masks global-random", "--masks and --compression go together"),
        ("--compression 2", "--masks and --compression go together"),
        ("--masks global-random --compression 2,x", "--compression takes ratios such as 2,4,8, not 2,x"),
        ("--masks global-random --compression 2,2", "--compression names a ratio twice"),
        ("--masks global-random --compression 2,1e6", "compression 1e+06 is out of reach"),
        ("--masks structured-l1 --compression 2,300", "compression 300: budget parameters="),
        ("--masks global-random --compression 2 --method l1", "leave --method and --budget out"),
        ("--masks global-random --compression 2 --budget macs=0.5", "leave --method and --budget out"),
        ("--masks global-random --compression 2 --equal-compute", "--equal-compute is for cuts, not for masks"),
        ("--masks global-random --compression 2 --paper cifar", "--paper is for cuts, not for masks"),
        ("--masks global-random --compression 2 --minimum 2", "--minimum is for methods that search"),
        ("--masks global-random --compression 2 --batch-size 2", "--batch-size is for methods that need batches"),
        ("--masks global-magnitude-gradient --compression 2 --steps 2", "--steps is for methods that need batches"),
        ("--masks global-random --compression 2 --latency-batch 2", "--latency-batch is for a budget of latency"),
        ("--masks global-random --compression 2 --importance l2", "--importance is for probe"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_anything_is_written(tmp_path, capsys, options, complaint):
    out = tmp_path / "masked"
    assert complaint in mistake(capsys, "prune", *CLASSIFIER, "--out", out, *options.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_but_masked_or_slim_checkpoints_is_replaced(tmp_path, capsys):
    masked = tmp_path / "masked"
    assert prune(CLASSIFIER, "global-random", "2", masked) == 0
    asked = ["--masks", "global-random", "--compression"]
    assert "is a checkpoint or a run" in mistake(capsys, "prune", *CLASSIFIER, *asked, "2,4", "--out", masked)
    assert "is asked for" in mistake(capsys, "prune", masked, *asked, "2", "--out", masked)
    other = shutil.copytree(masked, tmp_path / "several" / "2")
    (other / "notes.txt").write_text("mine")
    error = mistake(capsys, "prune", *CLASSIFIER, *asked, "4,2", "--out", other.parent)
    assert f"{other} holds other files" in error and not (other.parent / "4").exists()
