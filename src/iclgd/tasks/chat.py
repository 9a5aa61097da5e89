"""Prompts as conversations: each demonstration is a user's turn and the assistant's answer, the query the last turn.

A tokenizer's chat template is taken apart once, into what stands before, between and after the turns. Every prompt is
put together from these parts, and the first one is compared with what the template itself makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Stands before a template and replaces the function that transformers gives it. Its line end is not output.
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
    answer: str  # between a user's text and the assistant's answer
    delimiter: str  # white space that only a written answer has before it
    closing: str  # what ends the assistant's answer
    tokenizer: Any  # whose template it is

    def as_turns(self, drawn: Drawn) -> Drawn:
        """The same draw, with each text as a user's turn that ends where the assistant's answer begins.

        Raises:
            DataError: a text that holds the name of a special token, which could end its turn.
        """
        return replace(
            drawn,
            demonstrations=self._turns(drawn.demonstrations),
            queries=self._turns(drawn.queries),
            training=None if drawn.training is None else self._turns(drawn.training),
            calibration=self._turns(drawn.calibration),
        )

    def _turns(self, examples: Sequence[Example]) -> tuple[Example, ...]:
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
                text=f"{self.user}{example.text.strip()}{self.answer}",
                options=tuple(option.strip() for option in example.options),
                tail=self.answer,
                delimiter=self.delimiter,
            )
            for example in examples
        )

    def bos(self) -> Ids:
        """What stands before the first turn."""
        return self._before_a_turn(self.opening)

    def separator(self) -> Ids:
        """What stands between an answer and the next turn."""
        return self._before_a_turn(self.closing)

    def _before_a_turn(self, text: str) -> Ids:
        both, turn = self._ids(text + self.user), self._ids(self.user)
        return both[: len(both) - len(turn)]

    def _ids(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def check(self, prompts: PromptSet, drawn: Drawn) -> None:
        """Refuse a template of which this prompt is not the conversation."""
        turns = _system(drawn.description)
        for example in drawn.demonstrations:
            turns += [_turn("user", example.text.strip()), _turn("assistant", example.answer.strip())]
        turns.append(_turn("user", drawn.queries[0].text.strip()))
        expected = self._ids(_rendered(self.tokenizer, turns))
        if prompts.context() + prompts.queries[0].token_ids != expected:
            raise ConfigError(
                "model.chat=template: this tokenizer's template gives other tokens for the whole conversation than for "
                f"its turns, so that turns cannot be shared between prompts: {_REMEDY}"
            )


def conversation(tokenizer: Any, description: str | None = None) -> Conversation:
    """The parts of a tokenizer's chat template.

    A description of the task becomes the system message.

    Raises:
        ConfigError: there is no template, or turns depend on each other in it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"model.chat=template: this model's tokenizer has no chat template: {_REMEDY}")
    turns = [*_system(description), _turn("user", _USER), _turn("assistant", _ANSWER), _turn("user", _LAST)]
    whole = _rendered(tokenizer, turns)
    ended = _rendered(tokenizer, turns[:-1], prompt=False)
    try:
        head, rest = whole.split(_USER)
        answer, rest = rest.split(_ANSWER)
        between, last = rest.split(_LAST)
        closing = ended.split(_ANSWER)[1]
    except (ValueError, IndexError):
        raise ConfigError(_UNLIKE) from None
    user = between.removeprefix(closing)
    delimiter = answer.removeprefix(last)
    if not answer.startswith(last) or delimiter.strip() or len(user) == len(between) or not head.endswith(user):
        raise ConfigError(_UNLIKE)
    return Conversation(head.removesuffix(user), user, last, delimiter, closing, tokenizer)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(description: str | None) -> list[dict[str, str]]:
    return [_turn("system", description.strip())] if description else []


def _rendered(tokenizer: Any, turns: list[dict[str, str]], prompt: bool = True) -> str:
    from jinja2 import TemplateError

    try:
        template = _DATED + tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
    except TemplateError as error:  # some templates refuse a system message
        raise ConfigError(f"model.chat=template: this tokenizer's template fails ({error}): {_REMEDY}") from error
