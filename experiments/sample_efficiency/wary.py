"""Prototype: the shortest-path expert with a price for places near obstacles, among a few headings."""
import numpy as np
from navprune.tasks import STOP
from navprune.tasks.expert import TURN_COST, USEFUL_SHARE, _best_of, _turns_to_the_next_corner
from navprune.tasks.motion import collided, first_actions

P = {"clear": 0.2, "cost": 0.1, "span": 2, "turn": 0.01, "bias": 0.0}


def actions(pathfinder, positions, headings, goals, distances, *, success_distance, forward_step, turn_angle, sliding):
    actions = np.full(len(positions), STOP)
    active = np.flatnonzero((distances >= success_distance) & np.isfinite(distances))
    if not len(active):
        return actions
    positions, headings, goals, distances = positions[active], headings[active], goals[active], distances[active]

    def gains(agents, turns):
        heading = (headings[agents, None] + turns * turn_angle).ravel()
        starts, ends = (np.repeat(points[agents], turns.shape[1], axis=0) for points in (positions, goals))
        targets = starts - forward_step * np.stack([np.sin(heading), 0 * heading, np.cos(heading)], axis=-1)
        reached = pathfinder.step(starts, targets, sliding=sliding)
        left = pathfinder.geodesic_distance(reached, ends)
        near = 1 - pathfinder.obstacle_distance(reached, P["clear"]) / P["clear"]
        left += P["cost"] * near * np.minimum(1, np.repeat(distances[agents], turns.shape[1]))
        return distances[agents, None] - left.reshape(turns.shape) - P["turn"] * np.abs(turns)

    lower = _turns_to_the_next_corner(pathfinder, positions, headings, goals, turn_angle)
    everyone = np.arange(len(active))
    s = int(P["span"])
    turns = lower[:, None] + np.arange(-s, s + 2)
    gained = gains(everyone, turns)
    best = _best_of(gained, turns)
    hard = everyone[gained.max(axis=1) < USEFUL_SHARE * forward_step - P["cost"]]
    if len(hard):
        half = round(np.pi / turn_angle)
        around = np.broadcast_to(np.arange(-half + 1, half + 1), (len(hard), 2 * half))
        all_gained = np.hstack([gained[hard], gains(hard, around)])
        best[hard] = _best_of(all_gained, np.hstack([turns[hard], around]))
    actions[active] = first_actions(best)
    return actions
