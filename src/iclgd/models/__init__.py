"""Loading models, knowing their parts, recording what they do."""

from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.completeness import refuse_unknown_tokens
from iclgd.models.language_model import LanguageModel
from iclgd.models.loading import assemble, load, read_config, resolve_device, resolve_dtype
from iclgd.models.recorder import Question, RecordPlan, record, token_queries

__all__ = [
    "LanguageModel",
    "Question",
    "RecordPlan",
    "UnsupportedModelError",
    "assemble",
    "load",
    "read_config",
    "record",
    "refuse_unknown_tokens",
    "resolve_device",
    "resolve_dtype",
    "token_queries",
]
