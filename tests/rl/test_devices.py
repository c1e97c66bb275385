"""Half precision and compilation in training, on every device of this machine: they work and change digits alone."""

from dataclasses import replace

import pytest
import torch

from navprune.errors import UserError
from navprune.machine import compile_fault
from navprune.rl.checkpoints import load_policy
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
PPO = PPOConfig(steps=6, epochs=1, minibatches=2)
WARM = WarmStartConfig(frames=48, steps=12, sequence=6, epochs=1, batch=2)
RUN = TrainerConfig(total_frames=96, threads=1)

needs_compiler = pytest.mark.skipif(compile_fault() is not None, reason=f"torch.compile: {compile_fault()}")


def run(toys, folder, device, warm_start=WARM, **settings):
    config = replace(RUN, device=device, **settings)
    result = train(toys.spec(), toys.Corridor(), config, phases_of(PPO, warm_start), folder)
    return load_policy(result.latest).policy


def weights(policy):
    return torch.cat([p.detach().cpu().flatten() for p in policy.parameters()])


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_runs_the_encoder_in_halves_and_keeps_whole_weights(toys, tmp_path, device):
    trainer = Trainer(
        toys.spec(), toys.Corridor(), replace(RUN, device=device, bf16=True), phases_of(PPO, WARM), tmp_path / "a"
    )
    seen = set()
    encoder = trainer.network.encoder
    encoder.register_forward_hook(lambda _, __, output: seen.add((output.dtype, output.device.type)))
    trainer.run()
    assert seen == {(torch.bfloat16, device)}
    half, single = load_policy(tmp_path / "a" / "latest").policy, run(toys, tmp_path / "b", device)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    begun = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(PPO, WARM), tmp_path / "c").network
    learned, difference = weights(single) - weights(begun), weights(half) - weights(single)
    assert 0 < difference.norm() < learned.norm()


@needs_compiler
@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_encoder_learns_what_the_plain_one_learns(toys, tmp_path, device):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run(toys, tmp_path / "a", device, None, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # with and without gradients
    plain = run(toys, tmp_path / "b", device, None)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), atol=1e-4, rtol=1e-3)


def test_where_nothing_can_be_compiled_that_is_said_at_once(toys, tmp_path, monkeypatch):
    monkeypatch.setattr("navprune.rl.trainer.compile_fault", lambda: "torch lies in my code; use another folder")
    with pytest.raises(UserError, match=r"trainer\.compile cannot be used here: torch lies in my code; .*leave it out"):
        run(toys, tmp_path / "run", "cpu", compile=True)
