"""Runs of the toy without their files: the laboratory, the evidence and the scores."""

from functools import cache

from configs import config
from iclgd.common.records import Evidence
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.metrics import measure, required_inputs
from iclgd.models.loading import load
from iclgd.runs.progress import Progress
from iclgd.tasks.encoding import encode

TOY = ("model=toy", "task=toy", "runtime.device=cpu", "finetune.other_task=toy_other")


def laboratory(*overrides, session=None) -> Laboratory:
    """A run's laboratory, with a model of its own."""
    run = config(*TOY, *overrides)
    prepared = prepare(run, session)
    model = load(run.model, run.runtime)
    prompts = encode(prepared.drawn, run, model.tokenizer, model.window)
    return Laboratory(model, prompts, run, required_inputs(run.metric.scores), Progress(), prepared)


@cache
def evidence(*overrides) -> Evidence:
    """The evidence of a run, made once."""
    return gather(laboratory("runtime.cache=off", *overrides))


@cache
def scores(*overrides):
    """The values of each score of a run."""
    specs = config(*TOY, *overrides).metric.scores
    return {name: score.values for name, score in measure(specs, evidence(*overrides)).items()}
