"""What TorchRL asks of a LossModule, asked of each loss."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn.functional import one_hot
from torchrl.data import Bounded
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal
from torchrl.objectives import SoftUpdate, ValueEstimators

from torchrl_mage import (
    CategoricalEnsembleLoss,
    CategoricalWorldModel,
    GaussianEnsembleLoss,
    GaussianEnsembleWorldModel,
    MAGELoss,
    MAGESACLoss,
    TaylorTDLoss,
)
from torchrl_mage.diagnostics import target_gradient_paths

OBS, ACTION, BATCH = 4, 2, 12
CASES = {
    "MAGE": (MAGELoss, {}),
    "MAGE-DDPG": (MAGELoss, {"num_qvalue_nets": 1, "policy_noise": 0.0}),
    "Dyna": (MAGELoss, {"gradient_coeff": 0.0}),
    "REDQ": (MAGELoss, {"num_qvalue_nets": 4, "sub_sample_len": 2}),
    "MAGE, three noisy steps": (MAGELoss, {"horizon": 3, "action_noise": 0.1}),
    "MAGE-SAC": (MAGESACLoss, {"target_entropy": -2.0}),
    "MAGE-SAC, fixed temperature": (
        MAGESACLoss,
        {"target_entropy": -2.0, "fixed_alpha": True, "alpha_init": 0.3},
    ),
    "Taylor TD": (TaylorTDLoss, {}),
    "Taylor TD in the state": (TaylorTDLoss, {"state_variance": 0.1}),
}
MODELS = {
    "ensemble likelihood": (GaussianEnsembleLoss, GaussianEnsembleWorldModel),
    "categorical likelihood": (CategoricalEnsembleLoss, CategoricalWorldModel),
}
FEW = ("MAGE", "MAGE-SAC", "Taylor TD in the state", *MODELS)  # those that differ most
every_loss = pytest.mark.parametrize("name", [*CASES, *MODELS])
every_agent_loss = pytest.mark.parametrize("name", CASES)


class Dynamics(nn.Module):
    """A module of the top level, so that it can be pickled."""

    def __init__(self):
        super().__init__()
        self.push = nn.Linear(ACTION, OBS)

    def forward(self, observation, action):
        return observation + self.push(action)


class Reward(nn.Module):
    def forward(self, action, following):
        return following.tanh().sum(-1, keepdim=True) - action.square().sum(-1, keepdim=True)


class Ended(nn.Module):
    def forward(self, following):
        return following[..., :1] > 0.5


class Case:
    """A loss of its own networks; ``key`` renames every entry."""

    def __init__(self, name, seed=0, key=str, dtype=torch.float64, single=False, **kwargs):
        torch.manual_seed(seed)
        if name in MODELS:
            kind, dynamics = MODELS[name]
            self.model = dynamics(
                OBS,
                ACTION,
                ensemble_size=2,
                num_cells=(8,),
                in_keys=(key("observation"), key("action")),
                out_keys=(self.next(key("observation")),),
                dtype=dtype,
            )
            self.loss = kind(self.model, per_member=False, **kwargs)
            self.networks = {"loss_world_model": self.loss.world_model_params}
        else:
            kind, settings = CASES[name]
            settings = {"bounds": (-1.0, 1.0)} | settings | kwargs
            actor = self.actor(kind, key).to(dtype)
            critics = [
                TensorDictModule(
                    MLP(OBS + ACTION, 1, num_cells=[8], activation_class=nn.SiLU),
                    [key("observation"), key("action")],
                    [key("state_action_value")],
                ).to(dtype)
                for _ in range(settings.get("num_qvalue_nets", 2))
            ]
            self.model = self.world_model(key).to(dtype)
            self.loss = kind(actor, critics[0] if single else critics, self.model, **settings)
            if key is not str:
                names = ("action", "state_action_value", "reward", "terminated", "priority")
                self.loss.set_keys(**{n: key("td_error" if n == "priority" else n) for n in names})
            self.loss.make_value_estimator(gamma=0.9)
            if self.loss.delay_qvalue or self.loss.delay_actor:
                SoftUpdate(self.loss, tau=0.1)
            self.networks = {
                "loss_qvalue": self.loss.qvalue_network_params,
                "loss_actor": self.loss.actor_network_params,
            }
            if kind is MAGESACLoss and not settings.get("fixed_alpha"):
                self.networks["loss_alpha"] = nn.ParameterList([self.loss.log_alpha])
        self.key, self.dtype = key, dtype
        generator = torch.Generator().manual_seed(1)
        self.data = torch.randn(BATCH, 2 * OBS + ACTION, generator=generator, dtype=dtype)
        if isinstance(self.model, CategoricalWorldModel):  # the likeliest cell of the same numbers
            for part in (self.data[:, :OBS], self.data[:, OBS + ACTION :]):
                part.copy_(one_hot(part.argmax(-1), OBS))

    @staticmethod
    def next(key):
        return ("next", *((key,) if isinstance(key, str) else key))

    @staticmethod
    def actor(kind, key):
        if kind is not MAGESACLoss:
            net = nn.Sequential(
                MLP(OBS, ACTION, num_cells=[8], activation_class=nn.SiLU), nn.Tanh()
            )
            return TensorDictModule(net, [key("observation")], [key("action")])
        net = MLP(OBS, 2 * ACTION, num_cells=[8], activation_class=nn.SiLU)
        parameters = TensorDictModule(
            nn.Sequential(net, NormalParamExtractor()), [key("observation")], ["loc", "scale"]
        )
        return ProbabilisticActor(
            parameters,
            in_keys=["loc", "scale"],
            out_keys=[key("action")],
            distribution_class=TanhNormal,
        )

    def world_model(self, key):
        following = self.next(key("observation"))
        return TensorDictSequential(
            TensorDictModule(Dynamics(), [key("observation"), key("action")], [following]),
            TensorDictModule(Reward(), [key("action"), following], [self.next(key("reward"))]),
            TensorDictModule(Ended(), [following], [self.next(key("terminated"))]),
        )

    def td(self, *shape):
        """States, or transitions for the model's loss."""
        shape = shape or (BATCH,)
        observation, action, following = self.data.split([OBS, ACTION, OBS], -1)
        td = TensorDict({self.key("observation"): observation.reshape(*shape, OBS)}, shape)
        if "loss_world_model" in self.networks:
            td[self.key("action")] = action.reshape(*shape, ACTION)
            td[self.next(self.key("observation"))] = following.reshape(*shape, OBS)
        return td

    def __call__(self, td=None):
        torch.manual_seed(7)
        return self.loss(self.td() if td is None else td)


def leaves(params):
    return list(params.values(True, True))


@every_agent_loss
def test_unknown_keys_are_refused(name):
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        Case(name).loss.set_keys(rewards="reward")


@every_loss
def test_nested_keys_change_nothing_else(name):
    flat, nested = Case(name), Case(name, key=lambda k: ("agent", k))
    td = nested.td()
    torch.testing.assert_close(nested(td), flat())
    if name not in MODELS:
        assert td["agent", "td_error"].shape == (BATCH,)
        assert nested.loss.value_estimator.tensor_keys.reward == ("agent", "reward")
        nested.loss.set_keys(reward="other")
        assert nested.loss.value_estimator.tensor_keys.reward == "other"


@every_loss
def test_keyword_call_returns_the_out_keys_in_order(name):
    case = Case(name)
    expected = case()
    assert set(case.loss.out_keys) == set(expected.keys())
    named = {"_".join(k) if isinstance(k, tuple) else k: v for k, v in case.td().items(True, True)}
    torch.manual_seed(7)
    out = case.loss(**named)
    for key, value in zip(case.loss.out_keys, out, strict=True):
        torch.testing.assert_close(value, expected[key])
    first, *_, last = case.loss.out_keys
    case.loss.select_out_keys(last, first)
    torch.manual_seed(7)
    chosen = case.loss(**named)
    torch.testing.assert_close(chosen, (expected[last], expected[first]))


@every_loss
@pytest.mark.parametrize("shape", [(BATCH,), (3, 4), (2, 3, 2)])
def test_reductions_and_leading_dimensions(name, shape):
    flat = Case(name, reduction="none")()
    for reduction in ("none", "sum", "mean", None):
        case = Case(name, reduction=reduction)
        out = case(case.td(*shape))
        for key in case.networks:
            expected = flat[key].unflatten(-1, shape)
            if reduction != "none":
                expected = getattr(expected, reduction or "mean")()
            torch.testing.assert_close(out[key], expected)


@every_loss
def test_only_the_priority_is_written_to_the_input(name):
    case = Case(name)
    td, before = case.td(), case.td()
    out = case(td)
    if name not in MODELS:
        torch.testing.assert_close(td.pop("td_error"), out["td_error"].max(0).values)
    torch.testing.assert_close(td, before)


@every_loss
def test_each_loss_trains_its_own_network(name):
    case = Case(name)
    parameters = list(case.loss.parameters())
    assert len({id(p) for p in parameters}) == len(parameters)
    if name not in MODELS:
        world = {id(p) for p in case.model.parameters()}
        assert world
        assert not world & {id(p) for p in parameters}
    losses = {key for key in case.loss.out_keys if key.startswith("loss_")}
    assert losses - {"loss_alpha"} == set(case.networks) - {"loss_alpha"}
    for key, network in case.networks.items():
        for parameter in [*parameters, *case.model.parameters()]:
            parameter.grad = None
        case()[key].backward()
        own = {id(p) for p in network.parameters()}
        everything = [*parameters, *case.model.parameters()]
        reached = {id(p) for p in everything if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached <= own
        assert len(reached) >= max(1, len(own) - 1), "but for the critics' last bias, all of it"


@every_loss
def test_a_mask_of_the_batch_counts_for_every_loss(name):
    case, whole = Case(name), Case(name, reduction="none")()
    td = case.td()
    keep = torch.arange(BATCH) < 5
    td["collector", "mask"] = keep
    out = case(td)
    for key in case.networks:
        torch.testing.assert_close(out[key], whole[key][..., keep].mean())


@every_agent_loss
@pytest.mark.parametrize("delay", [True, False])
def test_targets_are_delayed_or_not(name, delay):
    loss = Case(name, delay_qvalue=delay).loss
    assert not any(p.requires_grad for p in leaves(loss.target_qvalue_network_params))
    before = loss.target_qvalue_network_params.clone()
    with torch.no_grad():
        loss.qvalue_network_params.data.apply_(lambda x: x.add_(1.0))
    pairs = zip(leaves(before), leaves(loss.target_qvalue_network_params), strict=True)
    assert all(torch.equal(*pair) == delay for pair in pairs)


@every_agent_loss
def test_missing_updater_warns(name):
    loss = Case(name).loss
    loss._has_update_associated = dict.fromkeys(loss._has_update_associated, False)
    with pytest.warns(UserWarning, match="No target network updater"):
        loss(Case(name).td())


@every_loss
def test_state_dict_round_trip(name):
    case, other = Case(name), Case(name, seed=1)
    assert not torch.allclose(*(c()[next(iter(c.networks))] for c in (case, other)))
    other.model.load_state_dict(case.model.state_dict())
    other.loss.load_state_dict(case.loss.state_dict())
    torch.testing.assert_close(other(), case())


@every_loss
def test_copies_are_independent(name):
    case = Case(name)
    expected = case()
    for twin in (copy.deepcopy(case.loss), pickle.loads(pickle.dumps(case.loss))):
        torch.manual_seed(7)
        torch.testing.assert_close(twin(case.td()), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.1)
        torch.testing.assert_close(case(), expected)
        torch.manual_seed(7)
        changed = twin(case.td())
        assert not any(torch.allclose(changed[key], expected[key]) for key in case.networks)


@every_agent_loss
def test_vmap_on_or_off(name):
    torch.testing.assert_close(Case(name)(), Case(name, deactivate_vmap=True)())


@every_agent_loss
def test_reset_leaves_the_world_model_alone(name):
    case = Case(name)
    world = [p.clone() for p in case.model.parameters()]
    old = {key: [p.clone() for p in net.parameters()] for key, net in case.networks.items()}
    case.loss.reset_parameters_recursive()
    torch.testing.assert_close(list(case.model.parameters()), world)
    for key in ("loss_qvalue", "loss_actor"):
        new = list(case.networks[key].parameters())
        changed = [not torch.equal(*p) for p in zip(old[key], new, strict=True)]
        assert all(c for c, p in zip(changed, new, strict=True) if p.dim() > 1)
    online, target = case.loss.qvalue_network_params, case.loss.target_qvalue_network_params
    torch.testing.assert_close(leaves(online.data), leaves(target.data))


@every_agent_loss
def test_one_critic_is_replicated_with_parameters_of_its_own(name):
    critics = Case(name, single=True).loss.qvalue_network_params
    count = CASES[name][1].get("num_qvalue_nets", 2)
    weight = critics["module", "0", "weight"]
    assert weight.shape[0] == count
    assert all(not torch.equal(weight[0], other) for other in weight[1:])


@every_agent_loss
def test_either_bounds_or_a_spec(name):
    spec = Bounded(-1.0, 1.0, (ACTION,), dtype=torch.float64)
    torch.testing.assert_close(Case(name, bounds=None, action_spec=spec)(), Case(name)())
    for neither_or_both in ({"bounds": None}, {"action_spec": spec}):
        with pytest.raises(ValueError, match="bounds"):
            Case(name, **neither_or_both)


@every_agent_loss
def test_other_value_estimators_are_refused(name):
    loss = Case(name).loss
    for unsupported in (ValueEstimators.TD1, ValueEstimators.TDLambda, ValueEstimators.GAE):
        with pytest.raises(NotImplementedError):
            loss.make_value_estimator(unsupported)
    assert loss.make_value_estimator(ValueEstimators.TD0, gamma=0.7) is loss
    assert loss.value_estimator.gamma == torch.tensor(0.7, dtype=torch.float64)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype):
    out = Case(name, dtype=dtype)()
    for key, value in out.items():
        assert value.dtype == dtype, key


@pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in (*CASES, *MODELS)
    ],
)
def test_one_graph(name):
    """Inductor's kernels are the business of test_compiled.py: here, one graph, equal numbers."""
    torch._dynamo.reset()  # every loss compiles TorchRL's one wrapper, and graphs are counted
    methods = ["nll"] if name in MODELS else ["value_loss", "actor_loss"]
    for method in methods:
        eager, compiled = Case(name), Case(name)
        compiled()  # the first call checks the world model, in eager mode
        graph = torch.compile(getattr(compiled.loss, method), backend="aot_eager", fullgraph=True)
        losses = []
        for case, function in ((eager, getattr(eager.loss, method)), (compiled, graph)):
            torch.manual_seed(7)
            loss, metadata = function(case.td())
            loss.backward()
            gradients = [p.grad for p in case.loss.parameters() if p.grad is not None]
            losses.append((loss, metadata, gradients))
        assert len(losses[0][2]) >= 2
        torch.testing.assert_close(*losses)


class Dearer(MAGELoss):
    """A loss with another target: rewards count twice, and the critics' value half."""

    def imagined_step(self, state, action):
        next_state, reward, terminated, share = super().imagined_step(state, action)
        return next_state, 2 * reward, terminated, share

    def next_value(self, *args):
        return 0.5 * super().next_value(*args)


CASES["another target"] = (Dearer, {"horizon": 2})


@pytest.mark.parametrize("name", CASES)
def test_paths_of_the_targets_gradient_add_up_to_it(name):
    """Eq. 13, of a subclass's own target too: both come from one transition, choice and value."""
    case = Case(name)
    loss, states = case.loss, case.td()
    torch.manual_seed(2)
    paths = loss.target_gradient_paths(states)
    torch.manual_seed(2)
    state, constants = loss._states(states), loss._constants()
    action = loss._act(state, loss.actor_network_params).detach().requires_grad_()
    target, _ = loss._target(state, action, *constants)
    (gradient,) = torch.autograd.grad(target.sum(), action)
    torch.testing.assert_close(sum(paths.values()), gradient)


class Sums(MAGELoss):
    """Forgets what it is to sum over, or to keep."""

    def critic_objective(self, td_error, errors):
        return td_error.square()


class Flat(MAGELoss):
    def next_value(self, *args):
        return super().next_value(*args).squeeze(-1)


class Wide(MAGELoss):
    def critics_action(self, state):
        return super().critics_action(state)[:1]


class Bonus(MAGELoss):
    def choose(self, state, params, *, last):
        chosen = super().choose(state, params, last=last)
        return chosen.set("bonus", chosen["action"].sum(-1))


class Perturbed(MAGELoss):
    perturbed_keys = ("nowhere",)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Sums, r"the loss's critic_objective returned shape \(2, 12\), expected \(12,\)"),
        (Flat, r"the loss's next_value returned shape \(12,\), expected \(12, 1\)"),
        (Wide, r"the loss's critics_action returned shape \(1,\), expected \(12,\)"),
        (Bonus, r"the loss's choose's bonus returned shape \(12,\), expected \(12, 1\)"),
        (Perturbed, r"the loss's perturbed_keys \['nowhere'\] are none of the state entries"),
    ],
)
def test_what_a_hook_returns_is_checked(kind, message):
    """It would broadcast, and train something else."""
    CASES["hook"] = (kind, {})
    case = Case("hook")
    del CASES["hook"]
    with pytest.raises(ValueError, match=message):
        case.loss.value_loss(case.td())


class Clipped(MAGELoss):
    """A target of its own, made around the parts of which the paths are."""

    def _target(self, *args):
        target, share = super()._target(*args)
        return target.clamp(-1, 1), share


def test_the_paths_of_a_target_of_which_nothing_is_known_are_refused():
    CASES["clipped"] = (Clipped, {})
    case = Case("clipped")
    del CASES["clipped"]
    message = (
        "Clipped._target replaces ImaginedTD3Loss._target: .* Override imagined_step, choose or"
    )
    with pytest.raises(NotImplementedError, match=message):
        case.loss.target_gradient_paths(case.td())
    with pytest.raises(NotImplementedError, match=message):
        target_gradient_paths(case.loss, case.td())
