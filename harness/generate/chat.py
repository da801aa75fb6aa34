"""Render a tokenizer's chat template, in a sandbox: a template is code from an untrusted file.

The sandbox keeps a template from Python's internals and from the file system; it does not keep it
from looping: Ctrl-C does.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, NoReturn

from harness.errors import HarnessError

Message = dict[str, str]  # "role" and "content"


def render_chat(template: str, messages: list[Message], special_tokens: dict[str, str]) -> str:
    """The prompt that a model's chat format makes of messages, up to where it is to answer.

    The template sees what Hugging Face's `apply_chat_template` gives it: `messages`,
    `add_generation_prompt`, the special tokens by name, `raise_exception`, `strftime_now`, and a
    `tojson` that does not escape for HTML. Raises HarnessError with the template's own complaint.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, **special_tokens
        )
    except Exception as error:  # a template may fail in any way that an expression can
        raise HarnessError(
            f"the tokenizer's chat template cannot be rendered: {error}; run without --chat"
        ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
