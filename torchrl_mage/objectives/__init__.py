"""Losses and target updates."""

from torchrl_mage.objectives.ensemble_nll import GaussianEnsembleLoss
from torchrl_mage.objectives.mage import MAGELoss
from torchrl_mage.objectives.target_update import NetworkSoftUpdate

__all__ = ["GaussianEnsembleLoss", "MAGELoss", "NetworkSoftUpdate"]
