"""Rollouts, advantages, PPO, imitation, the trainer and its checkpoints."""
