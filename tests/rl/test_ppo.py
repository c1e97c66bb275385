import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig, advantages, entropy, only_critic, policy_loss, value_loss
from navprune.rl.trainer import TrainerConfig, train


def column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)[:, None]


def flags(*values):
    return column(*values, dtype=torch.bool)


def test_advantages_computed_by_hand():
    # gamma 0.5, lambda 0.5; deltas: 1 + 0.5 * 4 - 2 = 1; 2 + 0.5 * 6 - 4 = 1; 3 + 0.5 * 2 - 6 = -2
    result = advantages(
        column(1.0, 2.0, 3.0),
        column(2.0, 4.0, 6.0),
        column(4.0, 6.0, 2.0),
        flags(0, 0, 0),
        flags(0, 0, 0),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert result.squeeze(1).tolist() == [1 + 0.25 * 0.5, 1 + 0.25 * -2, -2]


def test_an_end_counts_nothing_and_a_cut_off_counts_its_last_value():
    arguments = (column(1.0, 0.0), column(2.0, 5.0), column(8.0, 5.0))
    options = {"gamma": 0.5, "gae_lambda": 1.0}
    ended = advantages(*arguments, flags(1, 0), flags(0, 0), **options)
    cut_off = advantages(*arguments, flags(0, 0), flags(1, 0), **options)
    assert ended[0].item() == 1 - 2
    assert cut_off[0].item() == 1 + 0.5 * 8 - 2


@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 12),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
)
def test_advantages_are_the_weighted_sum_of_their_definition(seed, steps, gamma, gae_lambda):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, steps, 2, generator=generator, dtype=torch.float64)
    ends = torch.randint(6, (steps, 2), generator=generator)
    terminated, truncated = ends == 0, ends == 1
    result = advantages(rewards, values, next_values, terminated, truncated, gamma=gamma, gae_lambda=gae_lambda)
    for n in range(2):
        for t in range(steps):
            total = 0.0
            for k in range(t, steps):
                delta = rewards[k, n] - values[k, n]
                delta += 0 if terminated[k, n] else gamma * next_values[k, n]
                total += (gamma * gae_lambda) ** (k - t) * delta
                if terminated[k, n] or truncated[k, n]:
                    break
            assert result[t, n].item() == pytest.approx(float(total), abs=1e-9)


def test_advantages_refuse_to_broadcast():
    x, f = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        advantages(x, x, x[:, :1], f, f, gamma=0.9, gae_lambda=0.9)


def test_losses_computed_by_hand():
    log_probs, old = torch.tensor([math.log(0.6), math.log(0.1)]), torch.tensor([math.log(0.3)] * 2)
    # Ratios 2 and 1/3 are clipped to 1.2 and 0.8; the pessimistic one of each pair counts.
    assert policy_loss(log_probs, old, torch.tensor([1.0, 1.0]), 0.2).item() == pytest.approx(-(1.2 + 1 / 3) / 2)
    assert policy_loss(log_probs, old, torch.tensor([-1.0, -1.0]), 0.2).item() == pytest.approx((2 + 0.8) / 2)
    values, before, returns = torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([3.0])
    assert value_loss(values, before, returns, None).item() == 0
    assert value_loss(values, before, returns, 0.5).item() == pytest.approx(0.5 * 1.5**2)
    assert entropy(torch.zeros(2, 4)).item() == pytest.approx(math.log(4))


def test_only_the_critic_moves_within_its_block(toys):
    policy = toys.policy()
    with only_critic(policy):
        moving = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert moving == {"critic.fc.weight", "critic.fc.bias"}
    assert all(p.requires_grad for p in policy.parameters())


def test_critic_updates_leave_the_policy_as_it_was(toys, tmp_path):
    policy = toys.policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    config = PPOConfig(steps=8, critic_updates=2)
    train(policy, toys.Corridor(), TrainerConfig(total_frames=64, threads=1), phases_of(config), tmp_path)
    moved = {name for name, value in policy.state_dict().items() if not value.equal(before[name])}
    assert moved == {"critic.fc.weight", "critic.fc.bias"}


def test_a_corridor_is_learnt(toys, tmp_path):
    run = TrainerConfig(total_frames=16_000, threads=1, seed=3)
    config = PPOConfig(steps=8, lr=3e-3, linear_lr=True)
    result = train(toys.blind_spec(), toys.Corridor(num_envs=64), run, phases_of(config), tmp_path)
    assert result.metrics["success"] > 0.9


@pytest.mark.parametrize("field", [{"gamma": 1.5}, {"epochs": 0}, {"lr": 0.0}, {"clip": -1.0}])
def test_values_out_of_range_are_named(field):
    with pytest.raises(UserError, match=f"^ppo.{next(iter(field))} is"):
        PPOConfig(**field)


def test_more_minibatches_than_environments(toys, tmp_path):
    with pytest.raises(UserError, match="5 mini-batches"):
        train(toys.spec(), toys.Corridor(), TrainerConfig(), phases_of(PPOConfig(minibatches=5)), tmp_path)
