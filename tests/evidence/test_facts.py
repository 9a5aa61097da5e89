"""A graft of every layer of ICL is ICL."""

import torch

from iclgd.evidence.facts import graft_distances
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.metrics.distributions import total_variation
from iclgd.runs.progress import Progress
from learning_cases import learning
from mechanism_cases import recording, shown
from tiny_models import shared_model


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
