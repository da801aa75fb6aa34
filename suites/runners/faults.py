"""Broken runners: each fault changes one line of ExecuTorch's code at run time.

A fault names the place (of `places.py`) that must catch it. To add one: a row of `FAULTS`.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

from harness.errors import HarnessError

_ATTENTION = "executorch.examples.models.llama.static_attention"
_MANAGER = f"{_ATTENTION}:StaticAttentionIOManager"
_MASK = f"{_ATTENTION}:StaticAttentionMask"
_WRAPPER = "executorch.examples.apple.coreml.llama.utils:create_pte_wrapper"
_SENTENCEPIECE = "pytorch_tokenizers.llama2c:Llama2cTokenizer"


@dataclass(frozen=True)
class Fault:
    """A function ("module:Class.function") in whose source `old` becomes `new`.

    `place` must report it, in each of the `modes`; `lookahead` tells that it needs that option.
    """

    place: str
    function: str
    old: str
    new: str
    modes: tuple[str, ...] = ("single", "multifunction")
    lookahead: bool = False
    fixture: str = "tiny"


FAULTS = {
    "mask never updated": Fault("mask", f"{_MASK}.unmask", "] = 0\n", "] = self.mask_val\n"),
    "last row of the mask missing": Fault(
        "mask",
        f"{_MANAGER}._run_once",
        "        y, attn_updates = model(",
        "        for mask in self._masks.values():\n"
        "            mask.tensor[:, -1, : mask.cache_len] = self.mask_val\n"
        "        y, attn_updates = model(",
    ),
    "mask shows the next token": Fault("mask", f"{_MANAGER}.prefill", "diagonal=1", "diagonal=2"),
    "no visible position": Fault("mask", f"{_MANAGER}.prefill", "diagonal=1", "diagonal=0"),
    "cache not handed over": Fault(
        "cache",
        f"{_MANAGER}.decode",
        "        new_tokens = [init_token]",
        "        for cache in (*self.k_caches.values(), *self.v_caches.values()):\n"
        "            cache.zero_()\n"
        "        new_tokens = [init_token]",
    ),
    "cache rows crossed": Fault(
        "cache",
        f"{_MANAGER}._update_states",
        "in k_cache_updates.items():",
        "in zip(k_cache_updates, reversed(list(k_cache_updates.values()))):",
    ),
    "keys stored as values": Fault(
        "cache",
        f"{_MANAGER}._update_states",
        "in v_cache_updates.items():",
        "in k_cache_updates.items():",
    ),
    "padding stored": Fault(
        "padding",
        f"{_MANAGER}._run_once",
        "non_padded_len = non_padded_len or n_tokens",
        "non_padded_len = self.input_len",
    ),
    "padding stored behind the mask": Fault(
        "padding",
        f"{_MANAGER}._update_states",
        "update_len=update_len,\n",
        "update_len=self.input_len,\n",
    ),
    "position off by one": Fault(
        "positions",
        f"{_MANAGER}._run_once",
        "[self.pos : self.pos + self.input_len]",
        "[self.pos + 1 : self.pos + 1 + self.input_len]",
    ),
    "wrong RoPE slice": Fault(
        "positions",
        f"{_MANAGER}._run_once",
        "self.freqs_sin[self.pos : self.pos + self.input_len]",
        "self.freqs_sin[: self.input_len]",
    ),
    "last logits of the wrong row": Fault(
        "logits", f"{_MANAGER}.prefill", "[:, : tokens.size(1), :]", "", ("single",)
    ),
    "last valid position of the padding": Fault(
        "logits",
        f"{_MANAGER}._run_once",
        "torch.tensor([n_tokens - 1]",
        "torch.tensor([self.input_len - 1]",
        ("multifunction",),
    ),
    "decode reads the last row": Fault(
        "logits", f"{_MANAGER}.decode", "y[:, :1, ...]", "y[:, -1:, ...]", ("single",)
    ),
    "remainder of the chunks dropped": Fault(
        "ids",
        f"{_MANAGER}.prefill",
        "range(0, tokens.size(1), self.input_len)",
        "range(0, max(tokens.size(1) // self.input_len, 1) * self.input_len, self.input_len)",
    ),
    "ids truncated to 16 bits": Fault(
        "ids",
        f"{_MANAGER}._run_once",
        "n_tokens = tokens.size(1)",
        "tokens = tokens & 0xFFFF\n        n_tokens = tokens.size(1)",
        ("single",),
        fixture="layers-1",
    ),
    "EOS ignored": Fault(
        "stop",
        f"{_MANAGER}.decode",
        "if new_tokens[-1] in stop_tokens:",
        "if False:",
        fixture="layers-12",
    ),
    "BOS doubled": Fault(
        "prompt",
        f"{_SENTENCEPIECE}.encode",
        "[self.bos_id] + t",
        "[self.bos_id, self.bos_id] + t",
    ),
    "prefill sees the whole cache": Fault(
        "mask",
        _WRAPPER,
        "adapted_mask = prefill_mask",
        "adapted_mask = {k: v.clone().fill_(0) for k, v in prefill_mask.items()}",
        ("multifunction",),
    ),
    "lookahead that accepts everything": Fault(
        "acceptance",
        f"{_MANAGER}.lookahead_decode",
        "== match[-1]\n",
        "is not None\n",
        ("single",),
        lookahead=True,
    ),
}


@contextmanager
def broken(fault: Fault) -> Iterator[None]:
    """Replace a function by one of changed source; raise HarnessError where `old` is not in it."""
    module_name, _, path = fault.function.partition(":")
    module = importlib.import_module(module_name)
    *owners, name = path.split(".")
    owner: Any = reduce(getattr, owners, module)
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    old, new = fault.old, fault.new
    if owners:  # the text of a method has lost its indentation
        old, new = (text.replace("\n    ", "\n").removeprefix("    ") for text in (old, new))
    if old not in source:
        raise HarnessError(f"{fault.function} has no {fault.old!r}: the fault does not fit it")
    names: dict[str, Any] = {}
    code = compile(source.replace(old, new), f"<{fault.function}, broken>", "exec")
    exec(code, vars(module), names)
    setattr(owner, name, names[name])
    try:
        yield
    finally:
        setattr(owner, name, function)
