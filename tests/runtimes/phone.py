"""A connected iPhone: `devicectl`, `xcrun` and `xcodebuild`, and the app that coremltools installs.

coremltools' own `remote_device` talks to them, unchanged. Their sources are that module of
coremltools 9.0 and its app, `coremltools/modelrunner`. The app answers with Core ML, or with what
is stood in for it; its plan has a Neural Engine. TEST_IPHONE names the phone's folder.
"""

import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path

PHONE = Path(os.environ.get("TEST_IPHONE", "/nowhere"))
DEVICE = {
    "identifier": "5A1B2C3D-0000-4000-8000-000000000000",
    "deviceProperties": {
        "name": "A phone",
        "osVersionNumber": "18.5",
        "osBuildUpdate": "22F76",
        "developerModeStatus": "enabled",
    },
    "hardwareProperties": {"deviceType": "iPhone", "udid": "00008130-000000000000001E"},
    "connectionProperties": {"tunnelState": "connected"},
}


def install(folder):
    """Write the three programs into a folder, which the caller puts into PATH."""
    text = f"#!{sys.executable} -I\n{Path(__file__).read_text()}"
    for name in ("devicectl", "xcrun", "xcodebuild"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def xcodebuild(words):
    """Build the app, as for a device: a team or a profile must sign it."""
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    is_signed = settings.keys() & {"DEVELOPMENT_TEAM", "PROVISIONING_PROFILE"}
    if not is_signed or "CFFIXED_USER_HOME" in os.environ:  # where there are no accounts
        sys.exit('error: Signing for "modelrunner" requires a development team.')
    Path(settings["SYMROOT"], "Release-iphoneos", "modelrunner.app").mkdir(parents=True)
    with (PHONE / "builds").open("a") as file:
        file.write(f"{settings.get('DEVELOPMENT_TEAM')}\n")


def devicectl(words):
    """Answer a command; the result goes into the file that `-j` names."""
    given = dict(pairwise(words)) | dict(word.split("=", 1) for word in words if "=" in word)
    container = PHONE / given.get("--domain-identifier", "").replace(".", "_")
    place = container / given.get("--source" if "from" in words else "--destination", "")
    match words:
        case ["list", "devices", *_]:
            result = {"devices": json.loads((PHONE / "devices.json").read_text())}
        case ["device", "install", "app", *_]:
            result = {"installedApplications": [{"bundleID": "org.runner", "databaseUUID": "1"}]}
        case ["device", "process", "launch", "--console", "-d", _, bundle]:
            code = "from tests.runtimes.phone import serve; serve()"
            python = os.environ["TEST_IPHONE_PYTHON"]
            os.environ["TEST_IPHONE_APP"] = str(PHONE / bundle.replace(".", "_"))
            os.execv(python, [python, "-W", "ignore", "-c", code])
        case ["device", "copy", "to", *_]:
            copy(Path(given["--source"]), place)
            result = {"source": given["--source"], "destination": given["--destination"]}
        case ["device", "copy", "from", *_]:
            if not place.exists():
                sys.exit(f"ERROR: {given['--source']} is not there")
            copy(place, Path(given["--destination"]))
            result = {"source": given["--source"], "destination": given["--destination"]}
    Path(given["-j"]).write_text(json.dumps({"result": result}))


def copy(source, target):
    """Copy a file or a folder, which appears whole."""
    partial = target.parent / f".{target.name}.partial"
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, partial)
    partial.rename(target)


def serve():
    """Answer the requests that are copied into the app's folder."""
    root, models = Path(os.environ["TEST_IPHONE_APP"], "Documents", "modelrunnerd"), {}
    while True:
        for path in root.glob("requests/messages/*/message.json"):
            request = json.loads(path.read_text())
            path.unlink()
            folder = root / "responses" / request["id"]
            partial = folder.with_suffix(".partial")
            partial.mkdir(parents=True)
            given = root / "requests" / "resources" / request["id"] / request.get("resource", "")
            answer = {"jsonrpc": "2.0", "id": request["id"]}
            name = request["method"].removeprefix("MLModelService.")
            try:
                result, resource = REQUESTS[name](models, request["params"], given, partial)
                answer |= {"result": {"modelID": request["params"]["modelID"], **result}}
                answer |= {"resource": resource} if resource else {}
            except Exception as error:
                answer |= {"result": {}, "error": {"code": -32001, "message": str(error)}}
            (partial / "message.json").write_text(json.dumps(answer))
            partial.rename(folder)
        time.sleep(0.01)


def load(models, params, given, folder):
    import coremltools

    start = time.perf_counter_ns()
    units = coremltools.ComputeUnit[params["computeUnits"]]
    model = coremltools.models.CompiledMLModel(str(given), units, params["functionName"])
    try:
        state = (model.make_state(),)
    except Exception:  # it has none
        state = ()
    models[params["modelID"]] = model, state, str(given)
    return {"duration": time.perf_counter_ns() - start, "isCached": False}, None


def unload(models, params, given, folder):
    del models[params["modelID"]]
    return {}, None


def predict(models, params, given, folder):
    """Predict. As in the app, the size of an output counts those before it too."""
    import numpy

    model, state, _ = models[params["modelID"]]
    data, inputs = given.read_bytes(), {}
    for name, one in params["inputs"].items():
        count = int(numpy.prod(one["shape"], dtype=int))
        dtype, offset = one["dataType"].lower(), one["storage"]["offset"]
        inputs[name] = numpy.frombuffer(data, dtype, count, offset).reshape(one["shape"])
    start = time.perf_counter_ns()
    outputs = model.predict(inputs, *state)
    duration, described, buffer, offset = time.perf_counter_ns() - start, {}, b"", 0
    for name, array in outputs.items():
        buffer += array.tobytes()
        described[name] = {
            "dataType": array.dtype.name.capitalize(),
            "shape": array.shape,
            "strides": [step // array.itemsize for step in array.strides],
            "storage": {"offset": offset, "size": len(buffer)},
        }
        offset = len(buffer)
    (folder / "outputs.bin").write_bytes(buffer)
    return {"outputs": described, "duration": duration, "resource": "outputs.bin"}, "outputs.bin"


def plan(models, params, given, folder):
    from coremltools.models.compute_plan import MLModelStructure
    from coremltools.models.ml_program.experimental import model_structure_path as paths

    structure = MLModelStructure.load_from_path(models[params["modelID"]][2])
    usage = {"preferred": {"neuralEngine": {"totalCoreCount": 16}}, "supported": [{"cpu": {}}]}
    infos = [
        {"deviceUsage": usage, "estimatedCost": 0.5, "path": path.to_dict()}
        for operation, path in paths.map_model_structure_to_path(structure, components=[])
        if operation.operator_name != "const"
    ]
    return {"infos": infos}, None


REQUESTS = {"Load": load, "Unload": unload, "Prediction": predict, "ComputePlan": plan}

if __name__ == "__main__":
    program, *arguments = (Path(sys.argv[0]).name, *sys.argv[1:])
    if program == "xcrun":
        program, *arguments = arguments
    (xcodebuild if program == "xcodebuild" else devicectl)(arguments)
