"""Optuna's part of `sweeps=lr_search`, which looks for the learning rate at which each variant is at its best."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import Trial

LOWEST, HIGHEST = 1e-5, 1.0  # learning rates, log-uniform


class EachVariant(TPESampler):
    """A TPE sampler that takes the finetuning variants in turn instead of dropping the one that does worse."""

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The variant by the trial's number; anything else as TPE chooses."""
        if param_name == "finetune" and isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[trial.number % len(param_distribution.choices)]
        return super().sample_independent(study, trial, param_name, param_distribution)


def suggest_rate(config: DictConfig, trial: Trial) -> None:
    """Suggest the rate of the trial's own variant; under a name of its own, so that variants do not mix."""
    trial.suggest_float(f"task.rates.{trial.params['finetune']}", LOWEST, HIGHEST, log=True)
