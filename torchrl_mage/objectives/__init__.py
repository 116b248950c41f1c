"""Losses, target updates, and how the paper fits and optimises."""

from torchrl_mage.objectives.bounded_td0 import BoundedTD0Estimator
from torchrl_mage.objectives.categorical_nll import CategoricalEnsembleLoss
from torchrl_mage.objectives.ensemble_nll import GaussianEnsembleLoss, fit, member_minibatches
from torchrl_mage.objectives.mage import MAGELoss
from torchrl_mage.objectives.mage_sac import MAGESACLoss
from torchrl_mage.objectives.radam import radam
from torchrl_mage.objectives.target_update import NetworkSoftUpdate
from torchrl_mage.objectives.taylor_td import TaylorTDLoss
from torchrl_mage.objectives.transition_loss import TransitionLoss

__all__ = [
    "BoundedTD0Estimator",
    "CategoricalEnsembleLoss",
    "GaussianEnsembleLoss",
    "MAGELoss",
    "MAGESACLoss",
    "NetworkSoftUpdate",
    "TaylorTDLoss",
    "TransitionLoss",
    "fit",
    "member_minibatches",
    "radam",
]
