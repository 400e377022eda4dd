"""The configurations of all jobs; every default is defined here and nowhere else."""

from resunet_ray.config.demo import DemoConfig
from resunet_ray.config.doctor import DoctorConfig
from resunet_ray.config.evaluate import EvaluateConfig
from resunet_ray.config.files import RENAMED, load_config, save_config
from resunet_ray.config.model import AugmentConfig, InstanceConfig, ModelConfig, PreprocessConfig
from resunet_ray.config.prepare import PrepareConfig
from resunet_ray.config.segment import ExportConfig, GiveUpConfig, SegmentConfig
from resunet_ray.config.sweep import DashboardConfig, SweepConfig
from resunet_ray.config.train import (
    RECIPES,
    Metric,
    TrainConfig,
    baseline_recipe,
    long_recipe,
    lower_is_better,
)

__all__ = [
    "RECIPES",
    "RENAMED",
    "AugmentConfig",
    "DashboardConfig",
    "DemoConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GiveUpConfig",
    "InstanceConfig",
    "Metric",
    "ModelConfig",
    "PrepareConfig",
    "PreprocessConfig",
    "SegmentConfig",
    "SweepConfig",
    "TrainConfig",
    "baseline_recipe",
    "load_config",
    "long_recipe",
    "lower_is_better",
    "save_config",
]
