"""Losses and target updates."""

from torchrl_mage.objectives.ensemble_nll import GaussianEnsembleLoss
from torchrl_mage.objectives.mage import MAGELoss
from torchrl_mage.objectives.mage_sac import MAGESACLoss
from torchrl_mage.objectives.target_update import NetworkSoftUpdate
from torchrl_mage.objectives.taylor_td import TaylorTDLoss

__all__ = ["GaussianEnsembleLoss", "MAGELoss", "MAGESACLoss", "NetworkSoftUpdate", "TaylorTDLoss"]
