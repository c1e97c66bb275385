"""Evaluates trained agents and times their encoders: SPL against milliseconds.

    python -m experiments.latency_cpu.spl dense='runs/r50_s*' probe='runs/probe_s*'

Agents are given as to `navprune compare`. Rows come beside those of run.py; a run is evaluated again once it has been
trained further.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.latency_cpu import table
from experiments.latency_cpu.networks import Results, Setting
from experiments.latency_cpu.run import CPU, FRONTIER, HERE, clock_of
from navprune.commands.evaluate import Opened, opened, run_evaluation
from navprune.config import Config
from navprune.costs.counting import cost
from navprune.costs.latency import measure
from navprune.errors import UserError
from navprune.source import grouped

Key = tuple[str, str]


def read_all(agents: Sequence[str]) -> dict[Key, tuple[Opened, Config]]:
    """{(name, run): the agent and its configuration}; raises UserError for controls and blind agents."""
    found = {}
    for name, group in grouped(agents).items():
        for run, source in group.items():
            config = source.config()
            agent = opened(source, config)
            if agent.policy is None or not agent.policy.spec.encoder.observations:
                raise UserError(f"{source.text} has no encoder to time; give runs that see")
            found[name, run] = agent, config
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, evaluate, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", metavar="[NAME=]RUN", help="runs, as for `navprune compare`")
    parser.add_argument("--runtime", default=FRONTIER, help=f"of the encoders (default: {FRONTIER})")
    parser.add_argument("--repeats", type=int, default=100, help="passes of each encoder (default: 100)")
    parser.add_argument("--split", help="(default: the runs' data.val)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.jsonl, README.md and the figures")
    options = parser.parse_args(arguments)
    found = read_all(options.agents)
    results = Results(options.out / "results.jsonl", Setting(), [options.runtime], CPU)
    if results.missing:
        raise UserError(f"{options.runtime}: {results.missing[options.runtime]}")
    encoders = {" ".join(key): agent.policy.encoder for key, (agent, _) in found.items()}
    timed = measure(encoders, [1], [options.runtime], CPU, options.repeats, clock=clock_of(1), threads=1)
    for (name, run), (agent, config), row in zip(found, found.values(), timed):
        split, frames = options.split or config.data.val, agent.told["frames"]
        known = results.of("spl", name=name, run=run, split=split, frames=frames)
        measures = known[0] if known else run_evaluation(agent, config, split=split)[0].to_json(split)
        spl = measures["spl"] if known else measures["measures"]["spl"]
        told = {"split": split, "frames": frames, "episodes": measures["episodes"], "spl": spl}
        told |= {"median_ms": row.median_ms, "p95_ms": row.p95_ms, "macs": cost(agent.policy.spec).macs}
        results.put("spl", [told | {"runtime": options.runtime}], name=name, run=run)
    table.write(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
