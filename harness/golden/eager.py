"""An eager PyTorch module as a reference: what it gives, and how exactly.

`--reference module:function` imports the user's module, with the working directory on the path, and
calls the function: this executes their code, on purpose. It gives an `nn.Module`, another callable,
or a dict of those by method; each takes the method's inputs in declared order.

The reference computes in fp64 with weights rounded to the artifact's dtype. Constants in its code
may be rounded too, as coremltools stores them, or not: either is right. The same module with each
result rounded to fp16 shows what the artifact's own precision costs. Where the artifact's weights
are quantized, the reference computes with their values. Weights that only a function knows stay
as they are; the check then measures on the artifact what precision costs.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from harness.artifact import Artifact
from harness.errors import HarnessError
from harness.files import printing_to_stderr
from harness.generate.interface import signature
from harness.golden import Call, Expected, Golden, Steps, check_output, distance
from harness.golden.folding import Computed, replaced
from harness.golden.functions import (
    Function,
    Recording,
    Rounding,
    is_factory,
    with_its_modules,
)
from harness.golden.inputs import float_dtype, probes
from harness.golden.weights import (
    Key,
    Match,
    Parameters,
    adopted,
    has_values,
    held_weights,
    matches,
    most_alike,
)
from harness.pte import Specs

Results = list[tuple[torch.Tensor, ...]]


class Reference:
    """An eager module, or a dict of one for each method; `name` is its origin, for messages."""

    def __init__(self, name: str, target: object) -> None:
        self.name, self._target = name, target
        self._adopted: Parameters = {}
        self._is_users = False

    @classmethod
    def imported(cls, name: str) -> Self:
        """Return the user's module, named as `module:function`.

        Raises HarnessError, with the user's own error in it, when it cannot be imported.
        """
        origin = f"--reference {name}"
        module_name, _, attribute = name.partition(":")
        if not module_name or not attribute:
            raise HarnessError(f"{origin}: give module:function, as in models:load")
        sys.path.insert(0, str(Path.cwd()))
        try:
            with printing_to_stderr():
                found = getattr(importlib.import_module(module_name), attribute)
                made = cls(origin, found() if is_factory(found) else found)
                made._is_users = True
                return made
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the user's own code raises anything, SystemExit too
            raise _error(origin, "cannot be loaded", error) from error
        finally:
            sys.path.remove(str(Path.cwd()))

    def golden(self, artifact: Artifact, inputs: Mapping[str, Mapping[str, Steps]]) -> Golden:
        """Return what the module gives for inputs, by method and sequence.

        A sequence that the module refuses is left out, unless it refuses all of a method's: shapes
        that a description allows may not fit each other. The user's own module is also called with
        the values of `inputs.probes`, as far as it gives finite values for them.
        """
        half = float_dtype(artifact) == "fp16"
        self._adopted = adopted(artifact, self.parameters(artifact.methods))
        folded = half and not self._holds_its_weights(artifact)
        golden: Golden = {}
        for method, sequences in inputs.items():
            golden[method], refusal = {}, None
            _, outputs = signature(artifact, method)
            more = probes(artifact, method, sequences) if self._is_users else {}
            for name, steps in (*sequences.items(), *more.items()):
                try:
                    calls = self._calls(method, steps, half, folded)
                except HarnessError as error:
                    refusal = error
                    continue
                if name in more and not all(map(_is_finite, calls)):
                    continue
                for call in calls:
                    self._check(call, method, outputs)
                golden[method][name] = calls
            if refusal is not None and not golden[method]:
                raise refusal
        return golden

    def _check(self, call: Call, method: str, outputs: Specs) -> None:
        """Raise HarnessError unless the module gives values for all outputs of a method."""
        if len(call.expected) != len(outputs):
            raise HarnessError(
                f"{self.name}: returns {len(call.expected)} tensors; "
                f"method '{method}' has {len(outputs)} outputs"
            )
        for index, spec in enumerate(outputs):
            value = call.expected[index].values[0]
            check_output(value, spec, f"{self.name}: for method '{method}', its output {index}")

    def parameters(self, methods: tuple[str, ...]) -> Parameters:
        """Return the parameters and buffers of each method's module, fp32."""
        found: Parameters = {}
        for method in methods:
            target = self.module(method)
            if isinstance(target, torch.nn.Module):
                named = [*target.named_parameters(), *target.named_buffers()]
                floats = [(name, t) for name, t in named if t.is_floating_point()]
                found |= {(method, name): t.detach().float() for name, t in floats}
        return found

    def stages(
        self, artifact: Artifact, method: str, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[tuple[torch.Tensor, ...], list[tuple[str, torch.Tensor]]]:
        """Return the results of one call in fp64, and each value on the way with a name.

        Weights and constants are rounded to the artifact's dtype.
        """
        self._adopted = adopted(artifact, self.parameters(artifact.methods))
        half = float_dtype(artifact) == "fp16"
        mode = Recording(half)
        (results,) = self._run(method, (inputs,), torch.float64, half, mode)
        return results, mode.found

    def weight_matches(
        self, artifact: Artifact, inputs: Mapping[str, Mapping[str, Steps]]
    ) -> list[Match]:
        """Return the weights of the artifact, each with the parameter that it is.

        A weight that resembles no parameter was computed from several, by a pass that folds
        constants, and has none. If a parameter is missing instead, that is its `difference`.
        `inputs` are calls by method and sequence.
        """
        parameters, buffers, computed = self.parameters(artifact.methods), set(), set()
        for method in artifact.methods:
            target = self.module(method)
            if isinstance(target, torch.nn.Module):
                buffers |= {(method, name) for name, _ in target.named_buffers()}
                computed |= self._computed(method, target, inputs[method])
        found = {match.where: match for match in matches(artifact, parameters)}
        values = list(found.values())
        for match, problem in replaced(artifact, values, parameters, buffers, computed):
            found[match.where] = replace(match, difference=problem)
        return list(found.values())

    @torch.no_grad()
    def _computed(
        self, method: str, target: torch.nn.Module, sequences: Mapping[str, Steps]
    ) -> set[Key]:
        """Return the parameters that a module computes with before any input."""
        for steps in sequences.values():
            module = copy.deepcopy(target).eval()
            named = [*module.named_parameters(), *module.named_buffers()]
            mode = Computed({(method, name): tensor for name, tensor in named})
            try:
                with printing_to_stderr(), mode:
                    module(*(t.float() if t.is_floating_point() else t for t in steps[0]))
            except Exception:  # shapes that a description allows may not fit each other
                continue
            return mode.keys
        return {(method, name) for name, _ in target.named_parameters()}

    def _holds_its_weights(self, artifact: Artifact) -> bool:
        """Return whether every weight of the artifact is a parameter, changed or not, or a mask."""
        parameters = self.parameters(artifact.methods)
        return all(
            not has_values(weight) or most_alike(weight, parameters, is_half) is not None
            for _, weight, is_half in held_weights(artifact)
        )

    def _calls(self, method: str, steps: Steps, half: bool, folded: bool) -> tuple[Call, ...]:
        exact = self._run(method, steps, torch.float64, half, None)
        others = []
        if half:
            others.append(self._run(method, steps, torch.float64, True, Rounding(results=False)))
            rounded = self._run(method, steps, torch.float32, True, Rounding(results=True))
        else:
            rounded = self._run(method, steps, torch.float32, False, None)
        if folded:
            others.append(self._run(method, steps, torch.float64, False, None))
        target = self.module(method)
        # Weights that nobody sees keep their precision: the check measures what that costs.
        unrounded = half and (
            not isinstance(target, torch.nn.Module) or (folded and isinstance(target, Function))
        )
        calls = []
        for number, inputs in enumerate(steps):
            expected = {}
            for index, value in enumerate(exact[number]):
                values = (value, *(other[number][index] for other in others))
                cost = None if unrounded else distance(rounded[number][index], value)
                expected[index] = Expected(values, cost)
            calls.append(Call(inputs, expected))
        return tuple(calls)

    def _run(
        self,
        method: str,
        steps: Steps,
        dtype: torch.dtype,
        half_weights: bool,
        mode: Rounding | None,
    ) -> Results:
        """Call a copy of the module with each step's inputs; buffers go on from step to step."""
        try:
            return self._run_once(method, steps, dtype, half_weights, mode)
        except (KeyboardInterrupt, HarnessError):
            raise
        except BaseException as error:  # the user's own code raises anything, SystemExit too
            # Code may ask for fp32 by name; its error is far below fp16's.
            if dtype == torch.float64:
                return self._run(method, steps, torch.float32, half_weights, mode)
            raise _error(self.name, f"fails for method '{method}'", error) from error

    @torch.no_grad()
    def _run_once(
        self,
        method: str,
        steps: Steps,
        dtype: torch.dtype,
        half_weights: bool,
        mode: Rounding | None,
    ) -> Results:
        target = copy.deepcopy(self.module(method))
        if isinstance(target, torch.nn.Module):
            target = target.eval()
            if half_weights:
                for tensor in (*target.parameters(), *target.buffers()):
                    if tensor.is_floating_point():
                        tensor.data = tensor.data.half().float()
            for name, parameter in target.named_parameters():
                if (method, name) in self._adopted:
                    parameter.data = self._adopted[method, name]
            target = target.to(dtype)
        results = []
        for inputs in steps:
            given = [t.to(dtype) if t.is_floating_point() else t.clone() for t in inputs]
            # The exporters decompose attention too, and then round its scale.
            with printing_to_stderr(), sdpa_kernel(SDPBackend.MATH), mode or nullcontext():
                found = target(*given)
            leaves = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
            if not leaves:
                is_module = isinstance(found, torch.nn.Module)
                hint = "; a function that makes the module takes no arguments" if is_module else ""
                raise HarnessError(
                    f"{self.name}: called for method '{method}', it returns no tensor "
                    f"but a {type(found).__name__}{hint}"
                )
            results.append(tuple(leaf.detach().clone() for leaf in leaves))
        return results

    def module(self, method: str) -> Callable[..., Any]:
        """Return what the reference calls for a method."""
        target = self._target
        if isinstance(target, Mapping):
            if method not in target:
                raise HarnessError(
                    f"{self.name}: has no method '{method}', only {', '.join(target)}"
                )
            target = target[method]
        if not callable(target):
            raise HarnessError(
                f"{self.name}: is a {type(target).__name__}; give an nn.Module, a "
                "callable, or a dict of those by method"
            )
        return with_its_modules(target)


def _is_finite(call: Call) -> bool:
    """Return whether all that a call must give is finite, in fp16 too."""
    return all(
        (one.rounding is None or math.isfinite(one.rounding))
        and all(bool(value.isfinite().all()) for value in one.values)
        for one in call.expected.values()
    )


def _error(origin: str, what: str, error: BaseException) -> HarnessError:
    text = " ".join(str(error).split())[:300]
    return HarnessError(f"{origin}: {what}: {type(error).__name__}: {text}")
