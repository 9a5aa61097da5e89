"""A graft of every layer of ICL is ICL; changes of weights are after less before; the last step may break a model."""

import torch

from iclgd.evidence.facts import graft_distances
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import learn
from iclgd.evidence.preparation import prepare
from iclgd.metrics.distributions import total_variation
from iclgd.runs.progress import Progress
from learning_cases import finetuned, learning
from mechanism_cases import recording, shown
from tiny_models import shared_model
from toy_runs import laboratory


def test_a_graft_of_all_layers_is_icl_and_a_graft_of_none_is_not():
    model, case = shared_model("llama"), shown()
    icl, zsl = recording(model, case, case.context()), recording(model, case)
    run = learning("runtime.cache='off'")
    lab = Laboratory(model, case, run, set(), Progress(), prepare(run))
    distances = graft_distances(lab, icl, icl, up_to=True)
    assert distances[:, -1].max() < 1e-6 and distances[:, 0].min() > 1e-4
    alone = graft_distances(lab, icl, icl, up_to=False)
    torch.testing.assert_close(alone[:, 0], distances[:, 0])
    nothing = graft_distances(lab, zsl, icl, up_to=True)
    torch.testing.assert_close(nothing[:, -1], total_variation(zsl.next_token_log_probs, icl.next_token_log_probs))


def test_changes_of_weights_are_after_less_before():
    lab = laboratory("finetune=gd", "finetune.trainable=mlp", "metric=[weight_cosine]", "task.queries=2")
    weight = lab.model.anatomy.part(1, lab.model.anatomy.feed_forward.reads[0]).weight
    before, changes = weight.detach().clone(), learn(lab).changes
    with finetuned(lab.model, lab.prompts, lab.config):
        assert torch.equal(changes[1][0], weight.detach() - before) and changes[1][0].any()


def test_a_last_step_that_breaks_the_model_is_divergence():
    found = learn(
        laboratory("finetune=gd", "finetune.trainable=mlp", "finetune.lr=1e38", "task.shots=1", "task.queries=2")
    )
    assert found.trace.losses.isfinite().all() and found.trace.diverged_at == 1
    assert found.recording.attention_output.isnan().all()
