"""The LSTM written out from its equations, so that every gate can be inspected, and a plain RNN for comparison.

At each step t, from the input x_t, the previous hidden state h_{t-1} and the previous cell state C_{t-1}:

    forget gate   f_t  = sigmoid(W_f . [h_{t-1}, x_t] + b_f)     what to drop from memory: 0 forgets, 1 keeps
    input gate    i_t  = sigmoid(W_i . [h_{t-1}, x_t] + b_i)     what to add
    candidate     c~_t = tanh(W_c . [h_{t-1}, x_t] + b_c)        from -1 to +1
    cell state    C_t  = f_t * C_{t-1} + i_t * c~_t              element by element
    output gate   o_t  = sigmoid(W_o . [h_{t-1}, x_t] + b_o)
    hidden state  h_t  = o_t * tanh(C_t)

`torch.nn.LSTM` is the fast version; state dicts are interchangeable.  It stacks W and b of the four gates in the order
input, forget, candidate, output, with separate weights for x_t (`ih`) and for h_{t-1} (`hh`).

Source: Hochreiter and Schmidhuber 1997; the forget gate: Gers, Schmidhuber and Cummins 2000.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Gates:
    """Activations of one LSTM layer and direction: each (batch, steps, hidden), in time order."""

    forget: Tensor
    input: Tensor
    candidate: Tensor
    cell: Tensor
    output: Tensor
    hidden: Tensor


State = tuple[Tensor, ...]
"""State that a cell passes to the next step: (h_t, C_t) of an LSTM, (h_t,) of an RNN, each (batch, hidden)."""


class LSTMCell(nn.Module):
    """One step of the equations above.

    Args of forward:
        x: (batch, input_size), x_t
        state: h_{t-1} and C_{t-1}
    Returns of forward:
        h_t, C_t, then f_t, i_t, c~_t, o_t; each (batch, hidden)
    """

    n_gates, n_states = 4, 2
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        rows, bound = self.n_gates * hidden_size, hidden_size**-0.5
        for name, shape in {
            "weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size), "bias_ih": (rows,), "bias_hh": (rows,)
        }.items():  # fmt: skip
            setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def combine(self, x: Tensor, h: Tensor) -> Tensor:
        """W . [h_{t-1}, x_t] + b for all gates at once: (batch, n_gates * hidden)."""
        return x @ self.weight_ih.T + self.bias_ih + h @ self.weight_hh.T + self.bias_hh

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        h, C = state
        to_i, to_f, to_c, to_o = self.combine(x, h).chunk(4, dim=1)
        f = torch.sigmoid(to_f)
        i = torch.sigmoid(to_i)
        c = torch.tanh(to_c)
        C = f * C + i * c
        o = torch.sigmoid(to_o)
        h = o * torch.tanh(C)
        return h, C, f, i, c, o


class RNNCell(LSTMCell):
    """One step of a plain recurrent network: h_t = tanh(W . [h_{t-1}, x_t] + b).  Source: Elman 1990."""

    n_gates, n_states = 1, 1

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        return (torch.tanh(self.combine(x, state[0])),)


class LSTM(nn.Module):
    """Stacked, optionally bidirectional LSTM; arguments, results and state dict as `torch.nn.LSTM`, batch first.

    Args:
        input_size, hidden_size, num_layers: as in `torch.nn.LSTM`.
        dropout: probability between the layers, in training.
        bidirectional: add a second cell to each layer that reads the sequence backwards; outputs are concatenated.
    Args of forward:
        x: (batch, steps, input_size), or a PackedSequence of such.
    Returns of forward:
        output (batch, steps, directions * hidden), packed if x is packed;
        (h_n, C_n), the last state of each layer and direction, (layers * directions, batch, hidden) each.
    """

    cell = LSTMCell

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.directions = ("", "_reverse") if bidirectional else ("",)
        self.dropout = nn.Dropout(dropout)
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size * len(self.directions)
            for direction in self.directions:
                self.add_module(f"l{layer}{direction}", self.cell(size, hidden_size))
        self.register_state_dict_post_hook(_as_torch)
        self.register_load_state_dict_pre_hook(_from_torch)

    def forward(self, x: Tensor | PackedSequence) -> tuple[Tensor | PackedSequence, Any]:
        output, last, _ = self._run(x)
        states = tuple(torch.stack(kind) for kind in zip(*last, strict=True))
        return output, states if len(states) > 1 else states[0]

    def gates(self, x: Tensor | PackedSequence) -> list[Gates]:
        """The activations of every layer and direction: l0, l0_reverse, l1, ...  An RNN has none."""
        _, _, traces = self._run(x)
        return [Gates(f, i, c, cell, o, h) for h, cell, f, i, c, o in traces]

    def _run(self, x: Tensor | PackedSequence) -> tuple[Tensor | PackedSequence, list[State], list[tuple[Tensor, ...]]]:
        packed = isinstance(x, PackedSequence)
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x, batch_first=True)
        else:
            lengths = torch.full((x.shape[0],), x.shape[1])
        lasts, traces, inputs = [], [], x
        for layer in range(self.num_layers):
            inputs = self.dropout(inputs) if layer else inputs
            outputs = []
            for direction in self.directions:
                trace, last = self._run_cell(getattr(self, f"l{layer}{direction}"), inputs, lengths, bool(direction))
                outputs.append(trace[0])
                traces.append(trace)
                lasts.append(last)
            inputs = torch.cat(outputs, dim=2)
        if packed:
            return pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False), lasts, traces
        return inputs, lasts, traces

    def _run_cell(
        self, cell: LSTMCell, x: Tensor, lengths: Tensor, backwards: bool
    ) -> tuple[tuple[Tensor, ...], State]:
        """Run one cell over all steps; return its values, zero after a sequence's end, and its last state."""
        batch, steps = x.shape[:2]
        inside = (torch.arange(steps) < lengths[:, None]).to(x.device)[..., None]  # (batch, steps, 1)
        state: State = (x.new_zeros(batch, self.hidden_size),) * cell.n_states
        given: list[tuple[Tensor, ...]] = [()] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            values = cell(x[:, t], state)
            state = tuple(torch.where(inside[:, t], new, old) for new, old in zip(values, state, strict=False))
            given[t] = values
        return tuple(torch.stack(kind, dim=1) * inside for kind in zip(*given, strict=True)), state


class RNN(LSTM):
    """Stacked, optionally bidirectional plain RNN; as `torch.nn.RNN` with tanh, batch first."""

    cell = RNNCell


def _as_torch(module: LSTM, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename `l0_reverse.weight_ih` to `weight_ih_l0_reverse`."""
    for name, _child in module.named_children():
        for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
            state[f"{prefix}{key.removeprefix(prefix).removeprefix(f'{name}.')}_{name}"] = state.pop(key)


def _from_torch(module: LSTM, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename `weight_ih_l0_reverse` to `l0_reverse.weight_ih`."""
    names = {name for name, child in module.named_children() if isinstance(child, LSTMCell)}
    for key in [key for key in state if key.startswith(prefix)]:
        kind, _sep, name = key.removeprefix(prefix).rpartition("_l")
        if f"l{name}" in names:
            state[f"{prefix}l{name}.{kind}"] = state.pop(key)
