"""Our LSTM and RNN against torch's, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speech.model.lstm import LSTM, RNN, LSTMCell

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(
    kind: str, inputs: int, hidden: int, layers: int, both: bool, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """Ours with the weights of torch's."""
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(inputs, hidden, layers, batch_first=True, bidirectional=both).to(dtype)
    ours = {"LSTM": LSTM, "RNN": RNN}[kind](inputs, hidden, layers, bidirectional=both).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(network: nn.Module, x: torch.Tensor, lengths: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Output, last states, and what a random loss sends back to the input and to each weight."""
    x = x.clone().requires_grad_()
    packed = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, last = network(packed)
    if lengths is not None:
        output, _ = pad_packed_sequence(output, batch_first=True)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    network.zero_grad()
    (output * weights).sum().backward()
    states = last if isinstance(last, tuple) else (last,)
    assert x.grad is not None
    found = {"output": output, "x": x.grad} | {f"state{i}": s for i, s in enumerate(states)}
    names = {id(p): n for n, p in network.state_dict(keep_vars=True).items()}
    return found | {names[id(p)]: p.grad for p in network.parameters() if p.grad is not None}


def check(kind: str, size: tuple[int, int, int, bool], x: torch.Tensor, lengths: torch.Tensor | None) -> None:
    ours, theirs = (gradients(network, x, lengths) for network in pair(kind, x.shape[2], *size[1:], x.dtype))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=TOLERANCE[x.dtype], rtol=TOLERANCE[x.dtype], msg=name)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("both", [False, True])
def test_values_and_gradients_equal_torch(kind: str, dtype: torch.dtype, layers: int, both: bool) -> None:
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    check(kind, (5, 4, layers, both), x, None)
    check(kind, (5, 4, layers, both), x, torch.tensor([7, 2, 5]))


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 6),
    hidden=st.integers(1, 6),
    layers=st.integers(1, 3),
    both=st.booleans(),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_size_equals_torch(inputs: int, hidden: int, layers: int, both: bool, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(len(lengths), max(lengths), inputs, generator=generator, dtype=torch.float64)
    check("LSTM", (inputs, hidden, layers, both), x, torch.tensor(lengths))


def test_gates_obey_the_equations() -> None:
    ours, _ = pair("LSTM", 5, 4, 2, True, torch.float64)
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    traces = ours.gates(x)
    assert len(traces) == 4
    output, (last_h, last_c) = ours(x)
    torch.testing.assert_close(torch.cat([traces[2].hidden, traces[3].hidden], 2), output)
    torch.testing.assert_close(traces[3].hidden[:, 0], last_h[3])
    torch.testing.assert_close(traces[0].cell[:, -1], last_c[0])
    for number, gates in enumerate(traces):
        for gate in (gates.forget, gates.input, gates.output):
            assert ((gate > 0) & (gate < 1)).all()
        before = torch.zeros_like(gates.cell)
        if number % 2:  # the reverse direction: the step before is the one after
            before[:, :-1] = gates.cell[:, 1:]
        else:
            before[:, 1:] = gates.cell[:, :-1]
        torch.testing.assert_close(gates.cell, gates.forget * before + gates.input * gates.candidate)
        torch.testing.assert_close(gates.hidden, gates.output * torch.tanh(gates.cell))


def test_a_closed_forget_gate_forgets_and_an_open_one_keeps() -> None:
    cell = LSTMCell(1, 1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        state = (torch.zeros(1, 1), torch.full((1, 1), 3.0))
        cell.bias_ih[0] = -50  # input gate shut
        cell.bias_ih[1] = 50
        assert cell(torch.zeros(1, 1), state)[1].item() == pytest.approx(3.0)
        cell.bias_ih[1] = -50
        assert cell(torch.zeros(1, 1), state)[1].item() == pytest.approx(0.0)


def test_a_state_dict_goes_there_and_back() -> None:
    ours, theirs = pair("LSTM", 5, 4, 2, True, torch.float32)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    again = nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True)
    again.load_state_dict(ours.state_dict())
    with pytest.raises(RuntimeError, match="weight_hh"):
        ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "weight_hh_l1"})
