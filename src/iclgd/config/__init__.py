"""What can be said on the command line: keys with types, their bounds, and the user's own functions."""

from iclgd.config.bounds import ConfigError, MissingInput
from iclgd.config.schema import (
    Config,
    FinetuneConfig,
    MetricConfig,
    ModelConfig,
    ReferenceConfig,
    RuntimeConfig,
    ScoreConfig,
    TaskConfig,
    TrackingConfig,
    as_dict,
    register_schema,
    typed,
)
