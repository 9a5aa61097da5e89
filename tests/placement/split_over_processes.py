"""Run by torchrun: each family split over the processes, and how far it is from the same model in one."""

from __future__ import annotations

import sys
import tempfile
import warnings

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from iclgd.common import ranks
from iclgd.config import RuntimeConfig
from iclgd.config.enumerations import Placement
from iclgd.models.loading import assemble
from iclgd.models.placement import loading_arguments
from placement.placement_cases import everything, furthest
from tiny_models import tiny_network

if __name__ == "__main__":
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    ranks.connect()
    for family in sys.argv[1:]:
        network = tiny_network(family)
        with tempfile.TemporaryDirectory() as folder:
            place = ranks.told(folder)
            if ranks.own() == 0:
                network.save_pretrained(place)
            ranks.told(None)
            arguments = loading_arguments(RuntimeConfig(placement=Placement.tensor_parallel), network.config)
            split = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.float32, attn_implementation="eager", **arguments
            )
            ranks.told(None)
        shared = everything(assemble(split.eval(), None))
        alone = everything(assemble(network, None))
        if ranks.own() == 0:
            sys.stdout.write("{} {:.1e} {}\n".format(family, *furthest(alone, shared)))
            sys.stdout.flush()
    ranks.disconnect()
