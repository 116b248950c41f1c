"""The actors' outputs, in closed form, and what is left of a gradient at their bounds."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from torchrl_mage.modules import deterministic_actor

U = torch.tensor([[-30.0], [-9.1], [-0.5], [0.0], [2.0], [9.1], [30.0]])


def identity_actor(low, high, **kwargs):
    """Of the first feature, which it takes for the network's output."""
    actor = deterministic_actor(1, Bounded(low, high, (1,)), [], in_key="observation", **kwargs)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.fill_(1.0 if parameter.ndim == 2 else 0.0)
    return actor


def actions_and_gradients(actor):
    u = U.clone().requires_grad_()
    action = actor(TensorDict(observation=u, batch_size=[len(u)]))["action"]
    return action, torch.autograd.grad(action.sum(), u)[0]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 6.0)])
def test_soft_bounds_in_closed_form(low, high):
    action, gradient = actions_and_gradients(identity_actor(low, high, soft_bounds=True))
    middle, half = (low + high) / 2, (high - low) / 2
    torch.testing.assert_close(action, middle + half * U / (1 + U**2).sqrt())
    torch.testing.assert_close(gradient, half * (1 + U**2) ** -1.5, rtol=1e-3, atol=0.0)


def test_a_tanh_has_no_gradient_left_where_soft_bounds_have_some():
    action, gradient = actions_and_gradients(identity_actor(-1.0, 1.0))
    torch.testing.assert_close(action, U.tanh(), atol=1e-6, rtol=0)
    assert (gradient[U.abs() > 9] == 0).all()
    assert (actions_and_gradients(identity_actor(-1.0, 1.0, soft_bounds=True))[1] > 0).all()
