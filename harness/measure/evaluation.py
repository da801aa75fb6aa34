"""A model of lm-evaluation-harness (`lm_eval`) over any of our runtimes, registered as `harness`.

lm_eval knows a model only once its module is imported, and has no way to name a module on its
command line: `harness lm-eval` imports this one and calls lm_eval's command. In Python:

    import harness.measure.evaluation
    lm_eval.simple_evaluate("harness", "file=model.pte,tokenizer=tokenizer.json", tasks=["piqa"])

Requests are scored as lm_eval's own `hf` model scores them. They run one by one, each from empty
caches, because an artifact has a batch of one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from harness.artifact import open_artifact
from harness.artifact.hazards.narrowing import check_ids
from harness.errors import HarnessError
from harness.generate import generate_text, greedy, make_sampler
from harness.generate.calls import open_session
from harness.generate.tokenizer import StopTexts, check_vocabulary, load_tokenizer
from harness.measure.text import all_logits, feeds_all, log_probabilities, require_finite
from harness.runtimes import default_runtime, get_runtime

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from harness.generate import Sampler

NAME = "harness"
_MAX_NEW_TOKENS = 256  # where a task names no number; half of a shorter context
_NO_EFFECT = {"top_k", "top_p", "min_p", "typical_p", "temperature", "num_beams"}  # on the greedy

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, context, continuation


@register_model(NAME)
class HarnessLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """An artifact on a runtime, for lm_eval's tasks.

    `file` is the artifact, `tokenizer` its tokenizer's file or folder, `runtime` a runtime's name
    (by default this machine's), `seed` that of sampling. `batch_size`, `max_batch_size` and
    `device` are lm_eval's, which gives them to each model; they change nothing.

    Raises HarnessError for a file that is not a language model, or has another vocabulary.
    """

    def __init__(
        self,
        file: str,
        tokenizer: str,
        runtime: str | None = None,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(str(tokenizer))
        chosen = get_runtime(runtime or default_runtime())
        artifact = open_artifact(str(file))
        warnings = [check_ids(artifact.packages, self.tokenizer.size)]
        self._session = open_session(artifact, chosen)
        self._model = {"file": str(file), "runtime": chosen.name}
        self._seed = seed
        self.max_length: int = self._session.room
        warnings.append(check_vocabulary(self.tokenizer, self._session.layout.vocab_size))
        for warning in filter(None, warnings):
            logging.getLogger(__name__).warning(warning)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text; raises HarnessError without one."""
        if self.tokenizer.eos is not None:
            return int(self.tokenizer.eos)
        if not self.tokenizer.stop_tokens:
            raise HarnessError(
                f"{self.tokenizer.path}: no token ends a text; name `eos_token` in "
                "tokenizer_config.json beside it"
            )
        return min(self.tokenizer.stop_tokens)

    @property
    def prefix_token_id(self) -> int:
        """The id before a text that has no context: BOS, or that which ends a text."""
        return self.eot_token_id if self.tokenizer.bos is None else int(self.tokenizer.bos)

    @property
    def tokenizer_name(self) -> str:
        """The path of the tokenizer, by which lm_eval tells apart requests that it keeps."""
        return str(self.tokenizer.path.absolute()).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval writes into its results about the model."""
        return {**self._model, "mode": self._session.layout.mode, "max_length": self.max_length}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        """Return the ids of a text, with the tokenizer's prefix unless that is refused."""
        if add_special_tokens is False:
            return list(self.tokenizer.vocabulary.encode(string, parse_special=True))
        return list(self.tokenizer.encode(string, parse_special=True))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages in the model's chat format."""
        return str(self.tokenizer.render_chat(chat_history, add_generation_prompt))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log probability of each whole text, in nats.

        A text that is longer than the context is cut into windows; the last one has a full context.
        """
        totals = []
        for (text,) in self._shown([request.args for request in requests], disable_tqdm):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = map(utils.make_disjoint_window, windows)
            totals.append(sum(self._score(*pair)[0] for pair in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Return the log probability of each continuation, and whether greedy decoding gives it."""
        scores = []
        for texts, context, continuation in self._shown(requests, disable_tqdm):
            scores.append(self._score(context, continuation))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, scores[-1])
        return scores

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Score a continuation; a context that is too long loses its first tokens.

        Without a context, that of a text without one takes its place.
        """
        if not 1 <= len(continuation) <= self.max_length:
            raise HarnessError(
                f"a continuation of {len(continuation)} tokens cannot be scored: 1 to "
                f"{self.max_length} tokens fit the model's context"
            )
        context = context or [self.prefix_token_id]
        fed = [*context, *continuation][-self.max_length - 1 : -1]
        first = len(fed) - len(continuation)  # the position that predicts the first of them
        self._session.reset()
        if first > 0 and not feeds_all(self._session):
            rows = [self._session.prefill(fed[: first + 1])[None]]
            rows += all_logits(self._session, fed[first + 1 :])
        else:
            rows = list(all_logits(self._session, fed))
        logits = torch.cat(rows)[-len(continuation) :]
        require_finite(logits, self._model["runtime"], first)
        table = log_probabilities(logits)
        targets = torch.tensor(continuation)
        total = float(table.gather(-1, targets[:, None]).sum())
        return total, bool((table.argmax(-1) == targets).all())

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that continues each context, up to the first of its stop texts."""
        texts = []
        for context, settings in self._shown([request.args for request in requests], disable_tqdm):
            texts.append(self._continue(context, settings))
            self.cache_hook.add_partial("generate_until", (context, settings), texts[-1])
        return texts

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        given = cast(
            dict[str, Any],
            normalize_gen_kwargs(settings, min(_MAX_NEW_TOKENS, self.max_length // 2)),
        )
        until, limit = given.pop("until"), given.pop("max_gen_toks")
        stops, sampler = StopTexts(until), self._sampler(given)
        if not 1 <= limit < self.max_length:
            raise HarnessError(
                f"{limit} new tokens leave no room for a prompt in a context of {self.max_length}: "
                "give --gen_kwargs max_gen_toks=N"
            )
        prompt = self.tok_encode(context)[limit - self.max_length :] or [self.prefix_token_id]
        self._session.reset()
        tokenizer = self.tokenizer.stopping_at(until)
        text = ""
        for piece, _ in generate_text(self._session, tokenizer, prompt, limit, sampler):
            text += stops.push(piece)
            if stops.found:
                break
        return text + stops.end()

    def _sampler(self, settings: dict[str, Any]) -> Sampler:
        """Return the sampler of a task's settings; an option that would be lost is an error."""
        is_sampled = settings.pop("do_sample")
        known = {"temperature", "top_p"} if is_sampled else _NO_EFFECT
        if unknown := settings.keys() - known:
            raise HarnessError(
                f"the generation's {', '.join(sorted(unknown))} cannot be had here: sampling has "
                "temperature and top_p"
            )
        if not is_sampled:
            return greedy
        chosen = settings.get("temperature", 1.0), settings.get("top_p", 1.0)
        return make_sampler(*chosen, self._seed)

    def _shown(self, rows: Iterable[Any], is_hidden: bool) -> Iterable[Any]:
        return cast("Iterable[Any]", tqdm(rows, disable=is_hidden, desc=self._model["runtime"]))
