"""Live surgery as training scripts meet it: several optimizers, steps that are half done, parts that are compiled."""

from __future__ import annotations

import torch

from surgery.torch import operate
from tests.live_models import X, everything, loss_of, mlp, same, wider


def test_no_gradient_of_a_step_that_was_half_done_is_left():
    """Those of layers that the plan leaves alone would move them without the others."""
    net, scaler = mlp(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.Adam(net.parameters())
    scaler.scale(loss_of(net, X)).backward()
    scaler.unscale_(optimizer)
    operate(net, optimizer, X, wider(widths={"0": 9}))
    before = everything(net)
    assert all(parameter.grad is None for parameter in net.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert same(everything(net), before)
    optimizer.zero_grad()
    scaler.scale(loss_of(net, X)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0
