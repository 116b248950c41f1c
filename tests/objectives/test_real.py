"""The TD error on transitions that were observed."""

from __future__ import annotations

import pytest
import torch
from objectives.test_contract import CASES, OBS, Case
from tensordict import TensorDict
from torch.nn.functional import smooth_l1_loss
from torchrl.objectives import TD3Loss

from torchrl_mage import BoundedTD0Estimator, MAGELoss, TaylorTDLoss

TD3 = [name for name, (kind, _) in CASES.items() if kind in (MAGELoss, TaylorTDLoss)]


def transitions(case):
    """Of a replay buffer, every third one the last of its episode."""
    state, action, following = case.data.tensor_split([OBS, case.data.shape[-1] - OBS], -1)
    count = len(case.data)
    ended = (torch.arange(count) % 3 == 0)[:, None]
    return TensorDict(
        observation=state,
        action=action.tanh(),
        next={
            "observation": following,
            "reward": state[:, :1].sin(),
            "terminated": ended,
            "done": ended,
        },
        batch_size=[count],
    )


@pytest.mark.parametrize("name", TD3)
def test_it_is_torchrls_own_td3_loss(name):
    """Whose value loss our agent losses replace; ours draws the target noise alike."""
    case = Case(name, sub_sample_len=None)
    data = transitions(case)
    found = []
    for value_loss in (case.loss.real_value_loss, lambda td: TD3Loss.value_loss(case.loss, td)):
        case.loss.zero_grad()
        torch.manual_seed(3)
        loss, metadata = value_loss(data.clone())
        loss.backward()
        gradients = [p.grad.clone() for p in case.loss.qvalue_network_params.parameters()]
        found.append((loss.detach(), gradients, metadata))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert all(gradient.abs().sum() > 0 for gradient in found[0][1])
    torch.testing.assert_close(found[0][2]["real_td_error"].square(), found[1][2]["td_error"])


def test_a_soft_value_has_the_bonus_of_the_next_action():
    """``y = r + gamma (1 - d) (min Q'(s', a') - alpha log pi(a'|s'))``."""
    case = Case("MAGE-SAC", alpha_init=0.7)
    data, loss = transitions(case), case.loss
    torch.manual_seed(3)
    found, metadata = loss.real_value_loss(data)
    torch.manual_seed(3)
    following = data["next"].select("observation")
    action, log_prob = loss._sample(following, loss.actor_network_params)
    each = action.expand(2, *action.shape)
    value = loss._qvalue(following, each, loss.target_qvalue_network_params).min(0).values
    goes_on = (~data["next", "terminated"]).double().squeeze(-1)
    target = data["next", "reward"].squeeze(-1) + 0.9 * goes_on * (value - 0.7 * log_prob)
    taken = data["action"].expand(2, *action.shape)
    error = target - loss._qvalue(data.select("observation"), taken, loss.qvalue_network_params)
    huber = smooth_l1_loss(error, torch.zeros_like(error), reduction="none").sum(0).mean()
    torch.testing.assert_close(found, huber)
    torch.testing.assert_close(metadata["real_td_error"], error.detach().abs())


def test_an_estimator_bounds_it_too():
    case = Case("MAGE")
    case.loss.make_value_estimator(BoundedTD0Estimator, gamma=0.9, bounds=(-1e-9, 1e-9))
    data = transitions(case)
    _, metadata = case.loss.real_value_loss(data)
    taken = data["action"].expand(2, *data["action"].shape)
    value = case.loss._qvalue(data.select("observation"), taken, case.loss.qvalue_network_params)
    torch.testing.assert_close(metadata["real_td_error"], value.detach().abs(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["MAGE", "MAGE-SAC", "Taylor TD in the state"])
def test_keys_and_compilation(name):
    """Renamed entries, in one graph, and the batch is left as it was."""
    case = Case(name)
    data = transitions(case)
    torch.manual_seed(0)
    expected, _ = case.loss.real_value_loss(data)
    nested = Case(name, key=lambda entry: ("agent", entry))
    renamed = TensorDict(
        agent={key: data[key] for key in ("observation", "action")},
        next={"agent": data["next"].exclude("done")},
        batch_size=data.batch_size,
    )
    before = renamed.clone()
    torch.manual_seed(0)
    torch.testing.assert_close(nested.loss.real_value_loss(renamed)[0], expected)
    assert (renamed == before).all()
    torch.compiler.reset()
    graph = torch.compile(case.loss.real_value_loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    torch.testing.assert_close(graph(data)[0], expected)


@pytest.mark.parametrize("missing", ["observation", "action", "next", ("next", "reward")])
def test_an_entry_that_is_missing_is_named(missing):
    case = Case("MAGE")
    name = missing if isinstance(missing, str) else missing[-1]
    with pytest.raises(ValueError, match=f"'{name}', which the tensordict does not hold"):
        case.loss.real_value_loss(transitions(case).exclude(missing))
