"""What an expert is worth itself: python quality.py 'clear=.3 penalty=.1' ..."""
import os, sys, time
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
from pathlib import Path
import numpy as np, torch
import lookahead, fields, seen, wary
from navprune.commands.environments import environment, split_episodes
from navprune.config import load_config
from navprune.tasks import pointnav
from navprune.tasks.orders import Once
from navprune.simulator.scene import SceneLibrary
torch.set_num_threads(1)
own = pointnav.shortest_path_actions
defaults = {m: dict(m.P) for m in (lookahead, fields, seen, wary)}
config = load_config("demo", ["data.folder=runs/tuning/data", "task.width=8", "task.height=8"])
episodes = split_episodes(config, "val")
library = SceneLibrary()
for text in sys.argv[1:]:
    if "seen" in text:
        seen.EXPERT.__init__()
        seen.use(defaults[seen] | {k: float(v) for k, v in (p.split("=") for p in text.split() if "=" in p)})
    module = wary if "wary" in text else seen if "seen" in text else fields if "field" in text else lookahead
    module.P.update(defaults[module])
    module.P.update({k: float(v) for k, v in (p.split("=") for p in text.split() if "=" in p)})
    fields.MAPS = fields.Maps()
    pointnav.shortest_path_actions = own if text == "own" or module is seen else module.actions
    for noise in (0.0, 0.2):
        env = environment(config, "val", episodes, Once(len(episodes)), 48, library)
        env.reset()
        rng = np.random.default_rng(0)
        ends, spent, labels, last, rev, fwd, change, clear = [], 0.0, 0, np.zeros(48, int), 0, 0, 0, []
        while len(ends) < len(episodes):
            t = time.process_time()
            act = env.expert_actions().numpy()
            spent += time.process_time() - t
            n = int(env.active.sum()); labels += n
            rev += int(((act == 2) & (last == 3) | (act == 3) & (last == 2)).sum())
            fwd += int((act == 1).sum()); change += int((act != last).sum())
            if noise == 0:
                for finder, rows in env.poses.by_scene(np.flatnonzero(env.active)):
                    clear.extend(finder.obstacle_distance(env.poses.positions[np.flatnonzero(env.active)[rows]], 2.0))
            noisy = (rng.random(48) < noise) & (act != 0)
            act = np.where(noisy, rng.integers(1, 4, 48), act)
            step = env.step(torch.from_numpy(act))
            last = np.where((step.terminated | step.truncated).numpy(), 0, act)
            ends += [e.measures for e in step.finished]
        mean = {k: np.mean([e[k] for e in ends]) for k in ("spl", "success", "collisions", "steps")}
        print(f"{text:40s} noise {noise}: " + " ".join(f"{k} {v:.3f}" for k, v in mean.items()),
              f"reversals {rev/labels:.3f} forward {fwd/labels:.3f} changes {change/labels:.3f} us/label {1e6*spent/labels:.0f}", f"clear<.1 {np.mean(np.array(clear)<.1):.2f} <.2 {np.mean(np.array(clear)<.2):.2f}" if clear else "", flush=True)
        print('   plans per label', seen.EXPERT.plans / max(1, seen.EXPERT.calls)) if 'seen' in text else None
        env.close()
