"""`coreml:iphone`: Core ML on a connected iPhone, through the remote devices of coremltools 9.0.

The Mac compiles a package. coremltools builds its app `modelrunner` with Xcode, installs it on the
iPhone, and copies models, inputs and results with `devicectl`. That takes half a second a call, so
only Core ML's own times describe the iPhone. The app needs a signature: the environment variable
HARNESS_IPHONE_TEAM names your development team, or HARNESS_IPHONE_PROFILE a provisioning profile
and HARNESS_IPHONE_BUNDLE the bundle identifier that belongs to it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary, finalize

from harness.artifact import Package
from harness.errors import HarnessError
from harness.files import cache_folder
from harness.runtimes.coreml import CompiledPackage, CoreMLRuntime

TEAM, PROFILE, BUNDLE = (f"HARNESS_IPHONE_{name}" for name in ("TEAM", "PROFILE", "BUNDLE"))
_SOURCE = "Documents/modelrunnerd"  # where the app looks for requests
# Looks for an answer. coremltools gives up after 20, but a large model loads for minutes; the limit
# of a request to a child ends the wait.
_ATTEMPTS, _PAUSE = 100_000, 0.1
T = TypeVar("T")


class IPhoneRuntime(CoreMLRuntime):
    """Executes as `CoreMLRuntime` does, on the CPU and the Neural Engine of an iPhone."""

    def unavailable(self) -> str | None:
        """Return the reason: no Mac, no tools of Xcode, no connected iPhone, or no signature."""
        if reason := super().unavailable():
            return reason
        try:
            device = _connected()
        except Exception as error:  # coremltools raises ValueError and errors of its own
            return f"coremltools cannot list the connected devices: {_told(error)}"
        if device is None:
            return "no iPhone is connected to this Mac"
        if os.environ.get(TEAM) or os.environ.get(PROFILE):
            return None
        return f"an iPhone is connected, but {TEAM} names no team to sign coremltools' app"

    def _compile(self, package: Package) -> CompiledPackage:
        _phone()  # first, so that no load is charged with its start
        return _RemotePackage(package)

    def _devices_here(self) -> list[str]:
        device = _phone().device
        return [f"iPhone with iOS {device.os_version} ({device.os_build_number})"]


class _RemotePackage(CompiledPackage):
    """A package that the Mac compiled; its functions are loaded on the iPhone."""

    def __init__(self, package: Package) -> None:
        super().__init__(package)
        self._loaded: WeakValueDictionary[str, _RemoteModel] = WeakValueDictionary()

    def load(self, function: str, units: str) -> Any:
        """Load a function on the iPhone."""
        model = _RemoteModel(Path(self.path), units, self.asked_name(function))
        self._loaded[function] = model
        return model

    def plan(self, function: str, units: str) -> Any:
        """Return the iPhone's plan for a loaded function."""
        from coremltools.models.compute_plan import MLComputePlan, MLModelStructure
        from coremltools.models.ml_program.experimental import compute_plan_utils

        phone, structure = _phone(), MLModelStructure.load_from_path(self.path)
        plan = phone.run(self._loaded[function].service.retrieve_compute_plan())
        proxy = compute_plan_utils._MLComputePlanRemoteProxy(phone.device, plan, structure)
        return MLComputePlan(proxy)


class _RemoteModel:
    """A function on the iPhone, with the calls of coremltools' `CompiledMLModel`.

    The app itself makes a state for the model and keeps it from call to call.
    """

    def __init__(self, path: Path, units: str, function: str | None) -> None:
        import coremltools
        from coremltools.models.ml_program.experimental import remote_device

        phone = _phone()
        socket = remote_device._DeviceCtlSocket(phone.device, _SOURCE)

        async def load() -> Any:  # the service remembers the event loop that runs it
            service = remote_device._DeviceCtlRemoteService(socket, _PAUSE, _ATTEMPTS)
            chosen = coremltools.ComputeUnit[units]
            model = remote_device._RemoteMLModelService(service, path, chosen, function)
            await model.load()
            return model

        self.service = phone.run(load())
        finalize(self, _unload, phone, self.service, socket.working_directory)

    @property
    def _proxy(self) -> _RemoteModel:
        return self

    def make_state(self) -> None:
        """Return None: the app has made the state."""

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Predict once."""
        results: dict[str, Any] = _phone().run(self.service.predict(dict(inputs)))
        return results

    def get_load_duration_in_nano_seconds(self) -> int | None:
        """Return how long the iPhone loaded the function."""
        return self._duration(self.service.load_duration_in_nano_seconds)

    def get_last_predict_duration_in_nano_seconds(self) -> int | None:
        """Return how long the iPhone predicted last."""
        return self._duration(self.service.last_predict_duration_in_nano_seconds)

    def _duration(self, told: Any) -> int | None:
        return None if told is None else int(told)


def _unload(phone: _Phone, service: Any, folder: Path) -> None:
    """Unload a function on the iPhone, and remove what was exchanged with it.

    coremltools would unload it in its finalizer, in a coroutine that it never awaits.
    """
    with suppress(Exception):  # the iPhone may be gone
        phone.run(service.unload())
    service._state = type(service).State.Unloaded
    shutil.rmtree(folder, ignore_errors=True)


class _Phone:
    """The connected iPhone with the running app, and the event loop of all calls to it."""

    def __init__(self) -> None:
        from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials

        found = _connected()
        if found is None:
            raise HarnessError("the iPhone is no longer connected to this Mac")
        credentials = AppSigningCredentials(
            development_team=os.environ.get(TEAM, ""),
            provisioning_profile_uuid=os.environ.get(PROFILE),
            bundle_identifier=os.environ.get(BUNDLE),
        )
        # A child has another home for caches; Xcode has its accounts in the user's own.
        os.environ.pop("CFFIXED_USER_HOME", None)
        self._runner = asyncio.Runner()
        try:
            folder = cache_folder("modelrunner")  # the app is built once
            self.device = self.run(found.prepare_for_model_debugging(credentials, folder))
        except Exception as error:
            raise HarnessError(
                f"coremltools cannot start its app on the iPhone: {_told(error)}; is {TEAM} right, "
                "and is the iPhone unlocked?"
            ) from error

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Return the result of a call to the iPhone."""
        return self._runner.run(call)


_phone = functools.cache(_Phone)


@functools.cache
def _connected() -> Any:
    """Return the first connected iPhone of coremltools' devices, or None."""
    from coremltools.models.ml_program.experimental.remote_device import Device, DeviceType

    return next(iter(Device.get_connected_devices(DeviceType.IPHONE)), None)


def _told(error: Exception) -> str:
    """Return the message of an error, which coremltools may keep as bytes."""
    message = getattr(error, "message", None) or error
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    return " ".join(text.split()) or type(error).__name__
