"""`navprune prune --masks`: a network, a strategy and compression ratios to masked checkpoints."""

import copy
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.commands.evidence import material
from navprune.commands.prune import check_out, network_of, told_of_pruned
from navprune.config import Config, to_yaml
from navprune.errors import UserError
from navprune.files import json_bytes, write_file
from navprune.models.build import Network, build
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.policy import PointNavPolicy
from navprune.progress import say_once
from navprune.pruning.config import EvidenceConfig
from navprune.pruning.losses import Evidence, classification_loss
from navprune.pruning.masks import apply_masks, compression_ratio, strategy_of, theoretical_speedup
from navprune.pruning.methods.base import BATCHES
from navprune.pruning.prune import weights_hash
from navprune.rl.checkpoints import PRUNING, SPEC, numbered, read_any_spec, read_masks, save_checkpoint
from navprune.rl.devices import device_of
from navprune.source import FOLDER, Source


def run_masks(
    text: str,
    name: str,
    compressions: Sequence[float],
    evidence: EvidenceConfig,
    out: Path,
    config: Config,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mask what is named (see `Source`) at each ratio by a strategy; returns what each pruning.json holds.

    Writes a checkpoint to `out` or, of several ratios, each to the folder of its name in it. `seed` is that of initial
    weights, of chance and of the order of what is looked at. Raises UserError, before anything is written, for a ratio
    that is out of reach and for a network that is no policy or classifier.
    """
    strategy, source, folders = strategy_of(name), Source.parse(text), folders_of(out, compressions)
    for folder in folders:
        check_out(folder, source, evidence)
    found, spec = network_of(source, config, evidence, seed)
    network = cast(Network, found if isinstance(found, nn.Module) else build(found, seed))
    if not isinstance(network, Network):
        raise UserError(f"{text} is an encoder alone; give an agent's network, or a classifier")
    began, initial = time.perf_counter(), weights_hash(network)
    with ExitStack() as closing:
        batches, loss = material(strategy, spec, evidence, config, seed, closing)
        if isinstance(network, Classifier):
            loss = loss or classification_loss
        network.to(device_of(config.trainer.device) if BATCHES in strategy.needs else "cpu")
        seen = Evidence(torch.Generator().manual_seed(seed), batches, loss)
        every = strategy.choose(network, seen, compressions)
    network.cpu()
    _tell_replaced(source, every)
    answers = []
    for folder, asked, masks in zip(folders, compressions, every):
        masked = copy.deepcopy(network)
        apply_masks(masked, masks)
        save_checkpoint(folder, masked, config=to_yaml(config), metrics=told_of_pruned(source), masks=masks)
        answer = {
            "method": name,
            "compression": {"asked": asked, "reached": compression_ratio(network, masks)},
            **counts(network, masks),
            "seed": seed,
            "initial_weights": initial,
            "seconds": time.perf_counter() - began,
        }
        write_file(folder / PRUNING, json_bytes(answer))
        answers.append({"folder": str(folder), **answer})
    return answers


def folders_of(out: Path, compressions: Sequence[float]) -> list[Path]:
    """Where the checkpoint of each ratio goes; raises UserError for a ratio given twice, and where that is a run."""
    if len(compressions) == 1:
        return [out]
    folders = [out / f"{compression:g}" for compression in compressions]
    if len({*folders}) < len(folders):
        raise UserError("--compression names a ratio twice; give each once")
    if (out / SPEC).exists() or numbered(out):
        raise UserError(f"{out} is a checkpoint or a run; choose another folder for those of several ratios")
    return folders


def counts(network: Network, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """What masks leave: all "parameters" and, by name, the "weights" of those masked, [before, after].

    The "theoretical_speedup" is that of the encoder, or of the classifier; None where nothing is left to compute.
    """
    part = network.encoder if isinstance(network, PointNavPolicy) else network
    within = next(f"{name}." if name else "" for name, module in network.named_modules() if module is part)
    own = {name.removeprefix(within): mask for name, mask in masks.items() if name.startswith(within)}
    speedup = theoretical_speedup(part, own, torch.zeros(1, *part.spec.input))
    weights = {name: [mask.numel(), int(mask.sum())] for name, mask in masks.items()}
    every = sum(parameter.numel() for parameter in network.parameters())
    gone = sum(before - after for before, after in weights.values())
    return {
        "theoretical_speedup": speedup if math.isfinite(speedup) else None,
        "parameters": [every, every - gone],
        "weights": weights,
    }


def _tell_replaced(source: Source, every: Sequence[Mapping[str, Tensor]]) -> None:
    """Say so where weights that masks of the source hold at zero are to learn again."""
    old = read_masks(source.folder) if source.kind == FOLDER else {}
    freed = max(sum(int((~mask & masks.get(name, ~mask)).sum()) for name, mask in old.items()) for masks in every)
    if freed:
        say_once(f"masks of {source.text} are replaced: up to {freed:,} of the weights that they hold may learn again")


def next_step(folder: Path, config: Config, scratch: bool = False) -> str:
    """What to do with a masked checkpoint: the command that trains it, from `scratch` with new weights.

    Of a classifier whose configuration names no images it is the code that loads it.
    """
    if isinstance(read_any_spec(folder), ClassifierSpec) and config.images is None:
        code = f"navprune.rl.checkpoints.load_classifier({str(folder)!r})"
        return f"masked checkpoint in {folder}; load it in Python with\n  {code}"
    words = ["navprune", "train", "--config", f"{folder}/config.yaml", f"init={folder}", f"run={folder}_run"]
    words += ["init_weights=false"] if scratch else []
    words += ["warm_start=null"] if config.warm_start else []
    return f"masked checkpoint in {folder}; train it under its masks with\n  {shlex.join(words)}"
