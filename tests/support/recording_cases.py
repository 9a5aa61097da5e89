"""Four queries with labels of one to three tokens, three contexts, and their recordings."""

from iclgd.common.records import OPTIONAL_RECORDS
from iclgd.models.recorder import Question, RecordPlan, record

LABELS = ((5,), (6, 7), (6, 8, 9))
QUESTIONS = (
    ((11, 23, 35, 47, 59, 71, 83, 12, 24), LABELS),
    ((36, 48, 60), LABELS),
    ((13, 25, 37, 49, 61, 73), LABELS),
    ((14, 26, 38), ((40, 41), (42,))),
)
CONTEXTS = {"nothing before": (), "bos": (1,), "demonstrations": (1, *range(30, 43))}
ALL = RecordPlan(optional=frozenset(OPTIONAL_RECORDS), batch_tokens=40, bos=1)


def recorded(model, context, **plan):
    plan = RecordPlan(**{**vars(ALL), **plan})
    return record(model, [Question(*question) for question in QUESTIONS], CONTEXTS[context], plan)
