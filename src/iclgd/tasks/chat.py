"""Prompts as conversations: each demonstration is a user's turn and the assistant's answer, the query the last turn.

A tokenizer's chat template is taken apart once, into what stands before, between and after the turns. Every prompt is
put together from these parts, and the first one is compared with what the template itself makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from iclgd.common.records import PromptSet
from iclgd.config import ConfigError
from iclgd.tasks.draw import Drawn
from iclgd.tasks.examples import DataError, Example

Ids = tuple[int, ...]

_USER, _ANSWER, _LAST = "iclgd-one", "iclgd-two", "iclgd-three"  # texts that no template changes
_TODAY = date(2024, 7, 26)  # for templates that write the date: every day gives the same prompt. Llama 3's own example
_CODES = {f"%{code}": _TODAY.strftime(f"%{code}") for code in "aAbBdDeFhHIjmMpRSTyY"}
_CODES |= {f"%-{code}": str(int(_CODES[f"%{code}"])) for code in "dHIjmMSy"}
# Stands before a template and replaces the function that transformers gives it, which a template's arguments cannot:
# transformers makes text of them. Its line end is not output.
_DATED = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f".replace('{code}', '{text}')" for code, text in _CODES.items())
    + " }}{% endmacro %}\n"
)
_REMEDY = "set model.chat=none for plain prompts"
_UNLIKE = f"model.chat=template: this tokenizer's template writes turns unlike one another, or changes them: {_REMEDY}"


@dataclass(frozen=True)
class Conversation:
    """The parts of a chat template, as text."""

    opening: str  # before the first user's turn: a bos token, a system message
    user: str  # what begins a user's turn
    answer: str  # between a user's text and the assistant's answer, where more turns follow
    last: str  # the same where the answer is to be written; it may go on with an empty thought
    delimiter: str  # white space that only a written answer has before it
    closing: str  # what ends the assistant's answer
    thought: str  # what the template writes before an answer only where that ends the conversation
    tokenizer: Any  # whose template it is
    arguments: Mapping[str, Any]  # of the template

    def as_turns(self, drawn: Drawn) -> Drawn:
        """The same draw, with each text as a user's turn that ends where the assistant's answer begins.

        Raises:
            DataError: a text that holds the name of a special token, which could end its turn.
        """
        return replace(
            drawn,
            demonstrations=self._turns(drawn.demonstrations, self.answer),
            queries=self._turns(drawn.queries, self.last),
            training=None if drawn.training is None else self._turns(drawn.training, self.answer),
            calibration=self._turns(drawn.calibration, self.last),
        )

    def notes(self) -> tuple[str, ...]:
        """What the template would write otherwise, as sentences."""
        if not self.thought:
            return ()
        where = "demonstrations have it neither in the context nor in finetuning"
        if self.last == self.answer:
            where += ", and the label is read where it would begin (model.chat_arguments may set it)"
        return (f"the chat template writes {self.thought!r} before an answer that ends a conversation: {where}",)

    def _turns(self, examples: Sequence[Example], answer: str) -> tuple[Example, ...]:
        names = [name for name in self.tokenizer.get_added_vocab() if name.strip()]
        for example in examples:
            for name in names:
                if any(name in text for text in (example.text, *example.options)):
                    raise DataError(
                        f"{example.where}: the text holds {name!r}, which model.chat=template would read as the end or "
                        f"the beginning of a turn: remove it, or {_REMEDY}"
                    )
        return tuple(
            replace(
                example,
                text=f"{self.user}{example.text.strip()}{answer}",
                options=tuple(option.strip() for option in example.options),
                tail=answer,
                delimiter=self.delimiter,
            )
            for example in examples
        )

    def before_a_turn(self, text: str) -> Ids:
        """The tokens of `opening`, or of `closing`, where a user's turn follows."""
        both, turn = self._ids(text + self.user), self._ids(self.user)
        return both[: len(both) - len(turn)]

    def _ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def check(self, prompts: PromptSet, drawn: Drawn) -> None:
        """Refuse a template of which the first prompt, or what finetuning reads, is not the conversation."""
        turns = _system(drawn.description)
        begin = len(turns)
        for example in drawn.demonstrations:
            turns += [_turn("user", example.text.strip()), _turn("assistant", example.answer.strip())]
        query = _turn("user", drawn.queries[0].text.strip())
        expected = self._ids(_rendered(self.tokenizer, [*turns, query], self.arguments))
        finetuning = self._ids(_rendered(self.tokenizer, turns[: begin + 2], self.arguments, prompt=False))
        sequence = prompts.bos + prompts.demonstrations[0].token_ids
        if prompts.context() + prompts.queries[0].token_ids != expected:
            pieces = "the whole conversation than for its turns, so that turns cannot be shared between prompts"
        elif not self.thought and finetuning[: len(sequence)] != sequence:
            pieces = "a demonstration alone, as finetuning reads it, than for the same in a conversation"
        else:
            return
        raise ConfigError(f"model.chat=template: this tokenizer's template gives other tokens for {pieces}: {_REMEDY}")


def conversation(
    tokenizer: Any, description: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Conversation:
    """The parts of a tokenizer's chat template.

    Args:
        tokenizer: of Hugging Face.
        description: of the task; it becomes the system message.
        arguments: of the template, such as {"enable_thinking": False}.

    Raises:
        ConfigError: there is no template, it has no such argument, or turns depend on each other in it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"model.chat=template: this model's tokenizer has no chat template: {_REMEDY}")
    arguments = arguments or {}
    turns = [*_system(description), _turn("user", _USER), _turn("assistant", _ANSWER), _turn("user", _LAST)]
    whole = _rendered(tokenizer, turns, arguments)  # which refuses what is not a template
    _refuse_unknown(arguments, tokenizer.get_chat_template())
    ended = _rendered(tokenizer, turns[:-1], arguments, prompt=False)
    try:
        head, rest = whole.split(_USER)
        answer, rest = rest.split(_ANSWER)
        between, last = rest.split(_LAST)
        final, closing = ended.removeprefix(head + _USER).split(_ANSWER)
    except ValueError:
        raise ConfigError(_UNLIKE) from None
    user, thought, delimiter = between.removeprefix(closing), final.removeprefix(answer), answer.removeprefix(last)
    if answer.startswith(last) and not delimiter.strip():
        answer = last
    elif last == final and last.startswith(answer):  # the thought is in the prompt, and the label follows it
        delimiter = ""
    else:
        raise ConfigError(_UNLIKE)
    if not final.startswith(answer):
        raise ConfigError(_UNLIKE)
    return Conversation(head.removesuffix(user), user, answer, last, delimiter, closing, thought, tokenizer, arguments)


def _refuse_unknown(arguments: Mapping[str, Any], template: str) -> None:
    """Refuse what a template does not read: it would be passed over without a word."""
    from jinja2 import Environment, meta

    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)  # a tag of transformers' own
    names = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    names -= {"messages", "add_generation_prompt", "strftime_now", "raise_exception"}
    if unknown := sorted(arguments.keys() - names):
        raise ConfigError(
            f"model.chat_arguments names {', '.join(unknown)}, which this chat template ignores: it reads "
            f"{', '.join(sorted(names)) or 'none'}"
        )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(description: str | None) -> list[dict[str, str]]:
    return [_turn("system", description.strip())] if description else []


def _rendered(tokenizer: Any, turns: list[dict[str, str]], arguments: Mapping[str, Any], prompt: bool = True) -> str:
    from jinja2 import TemplateError

    template = _DATED + tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=prompt, **arguments
        )
    except TemplateError as error:  # some templates refuse a system message
        raise ConfigError(f"model.chat=template: this tokenizer's template fails ({error}): {_REMEDY}") from error
