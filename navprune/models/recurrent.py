"""The recurrent core over whole sequences in which episodes begin anywhere, with no call or wait for each beginning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from navprune.models.fast import eager, linear, plain_on_cpu, product
from navprune.models.spec import PolicySpec


class StateEncoder(nn.Module):
    """A GRU or LSTM with its state in one tensor [N, L, H]; of an LSTM the hidden layers, then the cells."""

    def __init__(self, spec: PolicySpec, inputs: int):
        super().__init__()
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[spec.rnn](inputs, spec.hidden_size, spec.rnn_layers)
        for name, parameter in self.rnn.named_parameters():
            orthogonal(parameter) if "weight" in name else nn.init.zeros_(parameter)

    def forward(self, x: Tensor, state: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [T, N, F], state [N, L, H], masks bool [T, N] -> outputs [T, N, H], state [N, L, H].

        The state of an environment is cleared before a step whose mask is False: multiplied by 0, elsewhere by 1,
        which is exact. A sequence is computed in the weights' precision, under autocast too; a single step is
        torch's layer, so that it can be exported.
        """
        if len(masks) > 1 and eager(x):
            dtype = self.rnn.weight_ih_l0.dtype
            with torch.autocast(x.device.type, enabled=False):
                return self._sequence(x.to(dtype), state.to(dtype), masks)
        hidden, outputs = state.transpose(0, 1), []
        for step, mask in zip(x, masks):
            hidden = (hidden * mask.to(hidden.dtype)[:, None]).contiguous()
            lstm = isinstance(self.rnn, nn.LSTM)
            output, after = self.rnn(step[None], hidden.chunk(2) if lstm else hidden)
            hidden = torch.cat(after) if lstm else after
            outputs.append(output)
        return torch.cat(outputs), hidden.transpose(0, 1)

    def _sequence(self, x: Tensor, state: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, layer by layer: the inputs of all steps at once, then step by step what depends on the last."""
        alive = masks.to(x.dtype)[..., None]
        layers = self.rnn.num_layers
        hidden, cells = [], []
        for layer in range(layers):
            w_in, w_state, b_in, b_state = (getattr(self.rnn, f"{name}_l{layer}") for name in NAMES)
            given = linear(x.flatten(0, 1), w_in, b_in).unflatten(0, x.shape[:2])
            if isinstance(self.rnn, nn.LSTM):
                x, last = _LSTM.apply(given, state[:, layer], state[:, layers + layer], alive, w_state, b_state)
                cells.append(last)
            else:
                x = _GRU.apply(given, state[:, layer], alive, w_state, b_state)
            hidden.append(x[-1])
        return x, torch.stack(hidden + cells, dim=1)


NAMES = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class _GRU(torch.autograd.Function):
    """Steps of a GRU layer; `given` [T, N, 3 H] is what the inputs say to reset gate, update gate and candidate.

    Written out because autograd would add up the gradient of the recurrent weights anew at every step.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, state: Tensor, alive: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        size = state.shape[-1]
        times = _product_with(weight)
        before, candidates, recalled, outputs = given.new_empty(4, *given.shape[:2], size)
        gates = torch.empty_like(given[..., : 2 * size])
        for t, inputs in enumerate(given.unbind()):
            torch.mul(state, alive[t], out=before[t])
            from_state = times(before[t]).add_(bias)
            torch.add(inputs[:, : 2 * size], from_state[:, : 2 * size], out=gates[t]).sigmoid_()
            reset, update = gates[t].chunk(2, dim=-1)
            recalled[t] = from_state[:, 2 * size :]
            torch.addcmul(inputs[:, 2 * size :], reset, recalled[t], out=candidates[t]).tanh_()
            state = torch.lerp(candidates[t], before[t], update, out=outputs[t])
        ctx.save_for_backward(before, gates, candidates, recalled, alive, weight)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Tensor) -> tuple[Tensor | None, ...]:
        before, gates, candidates, recalled, alive, weight = ctx.saved_tensors
        reset, update = gates.chunk(2, dim=-1)
        to_candidate = (1 - update) * (1 - candidates.square())  # how each follows from the gradient of a step's output
        to_update = (before - candidates) * update * (1 - update)
        to_reset = to_candidate * recalled * reset * (1 - reset)
        recall = to_candidate * reset
        size = reset.shape[-1]
        times = _product_with(weight.t())
        dgiven, dinner = doutputs.new_empty(2, *gates.shape[:2], 3 * size)
        slopes = torch.cat([to_reset, to_update, recall], dim=-1).unflatten(-1, (3, size))
        carried = torch.zeros_like(doutputs[0])
        for t in reversed(range(len(doutputs))):
            carried = carried + doutputs[t]
            torch.mul(slopes[t], carried[:, None], out=dinner[t].unflatten(-1, (3, size)))
            torch.mul(to_candidate[t], carried, out=dgiven[t, :, 2 * size :])
            carried = times(dinner[t]).addcmul_(carried, update[t]).mul_(alive[t])
        dgiven[..., : 2 * size] = dinner[..., : 2 * size]
        return dgiven, carried, None, _outer(dinner, before), dinner.sum((0, 1))


class _LSTM(torch.autograd.Function):
    """As `_GRU`; `given` [T, N, 4 H] is for input gate, forget gate, candidate and output gate."""

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, state: Tensor, cell: Tensor, alive: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        size = state.shape[-1]
        times = _product_with(weight)
        before, cells, squashed, outputs = given.new_empty(4, *given.shape[:2], size)
        gates = torch.empty_like(given)
        for t, inputs in enumerate(given.unbind()):
            torch.mul(state, alive[t], out=before[t])
            torch.mul(cell, alive[t], out=cells[t])
            torch.add(inputs, times(before[t]).add_(bias), out=gates[t])
            enter, keep, candidate, show = gates[t].chunk(4, dim=-1)
            gates[t, :, : 2 * size].sigmoid_()
            candidate.tanh_()
            show.sigmoid_()
            cell = torch.addcmul(enter * candidate, keep, cells[t])
            torch.tanh(cell, out=squashed[t])
            state = torch.mul(show, squashed[t], out=outputs[t])
        ctx.save_for_backward(before, cells, gates, squashed, alive, weight)
        return outputs, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutputs: Tensor, dcell: Tensor) -> tuple[Tensor | None, ...]:
        before, cells, gates, squashed, alive, weight = ctx.saved_tensors
        enter, keep, candidate, show = gates.chunk(4, dim=-1)
        size = show.shape[-1]
        to_cell = show * (1 - squashed.square())
        to_show = squashed * show * (1 - show)
        slopes = torch.cat(
            [candidate * enter * (1 - enter), cells * keep * (1 - keep), enter * (1 - candidate.square())], dim=-1
        ).unflatten(-1, (3, size))
        times = _product_with(weight.t())
        dgiven = torch.empty_like(gates)
        carried, dcell = torch.zeros_like(doutputs[0]), dcell.clone()
        for t in reversed(range(len(doutputs))):
            carried = carried + doutputs[t]
            dcell = dcell.addcmul_(carried, to_cell[t])
            torch.mul(slopes[t], dcell[:, None], out=dgiven[t, :, : 3 * size].unflatten(-1, (3, size)))
            torch.mul(to_show[t], carried, out=dgiven[t, :, 3 * size :])
            carried = times(dgiven[t]).mul_(alive[t])
            dcell = dcell.mul_(keep[t]).mul_(alive[t])
        return dgiven, carried, dcell, None, _outer(dgiven, before), dgiven.sum((0, 1))


def _product_with(weight: Tensor) -> Any:
    """The function that multiplies [N, K] by a weight [M, K] transposed."""
    return (lambda x: product(x, weight)) if plain_on_cpu(weight.detach()) else (lambda x: x @ weight.t())


def _outer(slopes: Tensor, values: Tensor) -> Tensor:
    """The sum over all steps of each slope [T, N, M] times each value [T, N, K], [M, K]."""
    return _product_with(values.flatten(0, 1).t())(slopes.flatten(0, 1).t())


def orthogonal(weight: Tensor, gain: float = 1.0) -> None:
    """Orthogonal weights, by one thread: how the decomposition rounds would depend on the number of threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        nn.init.orthogonal_(weight, gain)
    finally:
        torch.set_num_threads(threads)
