"""Networks and statistics."""

from torchrl_mage.modules.agent import critic, deterministic_actor, stochastic_actor
from torchrl_mage.modules.categorical_world_model import CategoricalWorldModel
from torchrl_mage.modules.ensemble import EnsembleLinear, EnsembleMLP
from torchrl_mage.modules.ensemble_world_model import EnsembleWorldModel
from torchrl_mage.modules.mlp import XavierLinear, xavier_mlp
from torchrl_mage.modules.normalizer import Normalizer, RunningStatistics
from torchrl_mage.modules.raw_policy import RawPolicy
from torchrl_mage.modules.reward_model import RewardModel, TerminationModel
from torchrl_mage.modules.reward_scaler import RewardScaler
from torchrl_mage.modules.world_model import GaussianEnsembleWorldModel

__all__ = [
    "CategoricalWorldModel",
    "EnsembleLinear",
    "EnsembleMLP",
    "EnsembleWorldModel",
    "GaussianEnsembleWorldModel",
    "Normalizer",
    "RawPolicy",
    "RewardModel",
    "RewardScaler",
    "RunningStatistics",
    "TerminationModel",
    "XavierLinear",
    "critic",
    "deterministic_actor",
    "stochastic_actor",
    "xavier_mlp",
]
