"""An anatomy in which one part is another module, another slice or another scale is refused."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from iclgd.models.anatomy import Anatomy, LanguageModel, UnsupportedModelError
from iclgd.models.discovery import discover
from iclgd.models.projections import Projection, output_size
from iclgd.models.self_test import check
from tiny_models import tiny_network

FAMILIES = ("llama", "gemma2", "olmo2", "phi3", "opt", "gpt2", "gpt_neox", "bloom", "falcon", "xglm")


def corrupted(anatomy: Anatomy, draw: random.Random) -> tuple[str, Anatomy]:
    """A kind of corruption that this anatomy can have, and the corrupted anatomy."""
    kinds = [attention, added, factor, other_projection, other_rows, exit_modules, exit_scale, order]
    if anatomy.feed_forward.adds is not None:
        kinds.append(feed_forward)
    kind = draw.choice(kinds)
    return kind.__name__, kind(anatomy, draw)


def with_layer(anatomy: Anatomy, number: int, **changes) -> Anatomy:
    layers = list(anatomy.layers)
    layers[number] = replace(layers[number], **changes)
    return replace(anatomy, layers=tuple(layers))


def others(block: nn.Module, module: nn.Module) -> list[nn.Module]:
    return [each for each in block.modules() if each is not module and each is not block]


def attention(anatomy, draw):
    number = draw.randrange(len(anatomy.layers))
    layer = anatomy.layers[number]
    return with_layer(anatomy, number, attention=draw.choice(others(anatomy.blocks[number], layer.attention)))


def added(anatomy, draw):
    number = draw.randrange(len(anatomy.layers))
    layer, block = anatomy.layers[number], anatomy.blocks[number]
    ((right, factor),) = layer.added
    alike = {layer.attention, right}  # put out the same, but for a norm behind them
    wrong = [each for each in others(block, right) if each not in alike and "Dropout" not in type(each).__name__]
    return with_layer(anatomy, number, added=((draw.choice(wrong), factor),))


def factor(anatomy, draw):
    number = draw.randrange(len(anatomy.layers))
    ((right, _),) = anatomy.layers[number].added
    return with_layer(anatomy, number, added=((right, draw.choice([0.5, 0.9, 1.01, 2.0])),))


def other_projection(anatomy, draw):
    number, part = draw.randrange(len(anatomy.layers)), draw.choice("qkvo")
    projections = anatomy.layers[number].projections
    right = {projection.module for projection in projections[part]}
    modules = [each for each in anatomy.blocks[number].modules() if isinstance(each, nn.Linear) and each not in right]
    wrong = (Projection(draw.choice(modules)),) if modules else ()
    return with_layer(anatomy, number, projections={**projections, part: wrong})


def other_rows(anatomy, draw):
    number, part = draw.randrange(len(anatomy.layers)), draw.choice("qkvo")
    projections = anatomy.layers[number].projections
    (right,) = projections[part]
    rows, size = right.outputs(), output_size(right.module)
    outside = torch.tensor(sorted(set(range(size)) - set(rows.tolist())))
    less = rows[torch.arange(len(rows)) != draw.randrange(len(rows))]
    more = torch.cat([rows, outside[:1]])
    shifted = (rows + draw.randrange(1, size)) % size
    wrong = draw.choice([less, more, shifted] if len(outside) else [less])
    return with_layer(anatomy, number, projections={**projections, part: (Projection(right.module, wrong),)})


def exit_modules(anatomy, draw):
    wrong = draw.choice([(), anatomy.exit.modules * 2, (*anatomy.exit.modules, nn.Tanh())])
    return replace(anatomy, exit=replace(anatomy.exit, modules=wrong))


def exit_scale(anatomy, draw):
    wrong = draw.choice([{"scale": 0.5}, {"scale": 1.02}, {"softcap": 5.0}])
    return replace(anatomy, exit=replace(anatomy.exit, **wrong))


def order(anatomy, draw):
    numbers = draw.sample(range(len(anatomy.blocks)), len(anatomy.blocks))
    if numbers == sorted(numbers):
        numbers.reverse()
    blocks, layers = anatomy.blocks, anatomy.layers
    return replace(anatomy, blocks=tuple(blocks[i] for i in numbers), layers=tuple(layers[i] for i in numbers))


def feed_forward(anatomy, draw):
    parts, block = anatomy.feed_forward, anatomy.blocks[0]
    paths = [path for path, module in block.named_modules() if isinstance(module, nn.Linear)]
    changes = [{"reads": parts.reads[1:]}]
    for wrong in (path for path in paths if path not in (*parts.reads, parts.adds)):
        changes += [{"adds": wrong}, {"reads": (wrong,)}]
    return replace(anatomy, feed_forward=replace(parts, **draw.choice(changes)))


@pytest.mark.parametrize("number", range(50))
def test_a_corrupted_anatomy_is_refused(number):
    draw, network = random.Random(number), tiny_network(FAMILIES[number % len(FAMILIES)]).requires_grad_(False)
    anatomy, passed = discover(network)
    kind, wrong = corrupted(anatomy, draw)
    with pytest.raises(UnsupportedModelError):
        check(LanguageModel(network, wrong, None), passed)
        pytest.fail(f"{kind} of {type(network).__name__} passed")
