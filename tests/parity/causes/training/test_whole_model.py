"""The change in one step that gives all of another program's gradients, without knowing its modules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity.causes.training.whole_model import whole_gradient_cause
from parity.recording.inputs import positional
from parity.report.findings import Cause


class Residual(torch.nn.Module):
    """Two residual blocks whose steps have the same lines."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Branch() for _ in range(2))
        self.token = torch.nn.Parameter(torch.zeros(1, 1, 6))
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Branch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
        self.cut = self.factor = self.slope = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.detach() if self.cut else x
        y = F.gelu(self.fc1(x))
        if self.slope:
            other = F.gelu(self.fc1(x), approximate="tanh")
            y = other + (y - other).detach()
        y = self.fc2(y)
        if self.factor:
            y = self.factor * y + (y - self.factor * y).detach()
        return kept + y


def filled(change: Callable[[Residual], None] = lambda model: None) -> Residual:
    torch.manual_seed(0)
    model = Residual().double()
    torch.nn.init.normal_(model.token)
    change(model)
    return model


X = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 4, 6)))


def gradients(model: Residual) -> tuple[dict[str, np.ndarray], np.ndarray]:
    output = model(X)
    output.retain_grad()
    output.sin().sum().backward()
    assert output.grad is not None
    found = {n: torch.zeros_like(p).numpy() if p.grad is None else p.grad.numpy() for n, p in model.named_parameters()}
    return found, output.grad.numpy()


def cause(change: Callable[[Residual], None], suspects: tuple[str, ...] = ("", "blocks.0", "blocks.1")) -> Cause | None:
    wanted, by_output = gradients(filled())
    given, _ = gradients(filled(change))
    return whole_gradient_cause(filled(), (X,), positional, wanted, given, [by_output], suspects, 1e-12)


def setting(block: int, name: str, value: float) -> Callable[[Residual], None]:
    return lambda model: setattr(model.blocks[block], name, value)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    ("name", "value", "switch"),
    [("cut", 1, "gradient cut"), ("slope", 1, "derivative"), ("factor", 3, "gradient scale")],
)
def test_one_change_in_one_of_two_equal_blocks(block: int, name: str, value: float, switch: str):
    found = cause(setting(block, name, value))
    assert found is not None
    assert (found.module, found.switch) == (f"blocks.{block}", switch)
    assert found.error_after <= 1e-12 < found.error_before


def test_a_parameter_that_is_not_trained():
    wanted, by_output = gradients(filled())
    given = {**wanted, "token": np.zeros_like(wanted["token"])}
    found = whole_gradient_cause(filled(), (X,), positional, wanted, given, [by_output], (), 1e-12)
    assert found is not None
    assert (found.module, found.switch) == ("the model", "gradient cut")
    assert "parameter token is zero" in found.description


def test_right_gradients_and_two_changes_have_no_cause():
    assert cause(lambda model: None) is None

    def both(model: Residual) -> None:
        model.blocks[0].cut, model.blocks[1].factor = 1, 3

    assert cause(both) is None


def test_only_suspected_modules_are_altered():
    assert cause(setting(0, "cut", 1), suspects=("blocks.1",)) is None
