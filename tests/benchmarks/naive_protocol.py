"""The published protocol, as its code runs it: one query at a time, the whole context each time, eager attention."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iclgd.common.records import PromptSet
from iclgd.models.language_model import LanguageModel


class NaiveProtocol:
    """Naive recordings and finetuning on the same weights as `model`, for a Llama-like network."""

    def __init__(self, model: LanguageModel, prompts: PromptSet) -> None:
        # built anew, so that its modules are transformers' own and none of ours
        self.network = type(model.network)(copy.deepcopy(model.network.config))
        self.network.load_state_dict(model.network.state_dict())
        self.network.eval().config._attn_implementation = "eager"
        self.layers = self.network.model.layers
        self.prompts = prompts
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(".k_proj." in name or ".v_proj." in name)

    def record(self, queries: Sequence[int], with_context: bool) -> list[dict[str, Tensor]]:
        """Attention outputs, scores up to a constant a row, and label scores of some queries."""
        before = self.prompts.context() if with_context else self.prompts.bos
        found = []
        for index in queries:
            query = self.prompts.queries[index].token_ids
            outputs, result = self._pass(torch.tensor([[*before, *query]]))
            log_probs = result.logits[0, -1].float().log_softmax(-1)
            found.append(
                {
                    "attention_output": torch.stack(outputs),
                    "attention_weights": torch.stack([a[0, :, -1, len(before) :] for a in result.attentions]),
                    "label_scores": torch.stack([log_probs[option[0]] for option in self.prompts.label_token_ids]),
                }
            )
        return found

    def _pass(self, tokens: Tensor) -> tuple[list[Tensor], Any]:
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            outputs.append(output[0, -1].float())

        handles = [block.self_attn.o_proj.register_forward_hook(keep) for block in self.layers]
        with torch.no_grad():
            result = self.network(tokens, output_attentions=True, use_cache=False)
        for handle in handles:
            handle.remove()
        return outputs, result

    def finetune(self, demonstrations: Sequence[int], lr: float, layer_causal: bool) -> None:
        """Plain SGD, one demonstration at a time, autograd through whatever the loss needs."""
        learner = torch.optim.SGD([p for p in self.network.parameters() if p.requires_grad], lr=lr)
        for index in demonstrations:
            tokens = torch.tensor([[*self.prompts.bos, *self.prompts.demonstrations[index].token_ids]])
            loss = self._layer_causal_loss(tokens) if layer_causal else self._loss(self.network(tokens).logits, tokens)
            loss.backward()
            learner.step()
            learner.zero_grad()

    def _loss(self, logits: Tensor, tokens: Tensor) -> Tensor:
        start = max(1, len(self.prompts.bos)) - 1
        return functional.cross_entropy(logits[0, start:-1].float(), tokens[0, start + 1 :])

    def _layer_causal_loss(self, tokens: Tensor) -> Tensor:
        exits: list[Tensor] = []

        def cut(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].detach(), *args[1:])

        def leave(_module: nn.Module, _args: object, output: Tensor) -> None:
            exits.append(output)

        handles = [block.register_forward_pre_hook(cut) for block in self.layers]
        handles += [block.register_forward_hook(leave) for block in self.layers]
        self.network.model(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        total = torch.zeros(())
        for output in exits:
            total = total + self._loss(self.network.lm_head(self.network.model.norm(output)), tokens)
        return total
