"""What a package must say about itself: manifest, specification version, descriptions.

Each function yields problems, a sentence each or a place and a sentence; nothing executes. Sources:
coremltools' `Model.proto` and `FeatureTypes.proto` with their validators
(`mlmodel/src/Validation/InterfaceValidators.cpp`), and `modelpackage/src/ModelPackage.cpp`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.artifact.files import MAX_MANIFEST_BYTES
from harness.artifact.operands import dtype_of, shape_text
from harness.artifact.package import MANIFEST, Package, core_ml_shape
from harness.artifact.proto import declared_shape, feature_types

if TYPE_CHECKING:
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType, FeatureType, ImageFeatureType
    from coremltools.proto.MIL_pb2 import ValueType
    from coremltools.proto.Model_pb2 import Model

    from harness.artifact.package import Description

SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}
"""The specification versions that can hold an ML Program, and the system that came with each."""
_OPSETS = {f"CoreML{version - 1}": version for version in SYSTEMS}
_FILE_FORMAT = (1, 0, 0)
_ITEM_KEYS = ("path", "name", "author", "description")
_CHANNELS = {10: 1, 20: 3, 30: 3, 40: 1}  # by `ColorSpace`: grayscale, RGB, BGR, fp16 grayscale
Problem = tuple[str, str]  # the place in a package, and what is wrong there


def manifest_problems(files: Mapping[str, memoryview]) -> Iterator[str]:
    """Yield what is wrong with a `Manifest.json`, which must describe the files of its package.

    Silent about a manifest that names no root model: reading the package says so.
    """
    twice: list[str] = []
    try:
        content = json.loads(
            bytes(files[MANIFEST][:MAX_MANIFEST_BYTES]),
            object_pairs_hook=lambda pairs: _unique(pairs, twice),
        )
        items = content["itemInfoEntries"]
        entries = {str(k): item if isinstance(item, dict) else {} for k, item in items.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    for key in twice:
        yield f"the key '{key}' occurs twice in one object"
    if not _known_format(content.get("fileFormatVersion")):
        yield f"fileFormatVersion is {content.get('fileFormatVersion')!r:.40}, not '1.0.0'"
    folders = {folder for name in files for folder in _above(name)}
    names: dict[object, str] = {}
    for key, item in entries.items():
        missing = [name for name in _ITEM_KEYS if not isinstance(item.get(name), str)]
        if missing:
            yield f"item '{key}' has no {' and no '.join(missing)}"
            continue
        path = f"Data/{item['path']}"
        is_file = "." in path.rpartition("/")[2]  # a model without weights has an empty folder
        if is_file and path not in folders:
            yield f"item '{key}' is '{path}', which does not exist"
        for what, value in (("path", path), ("author and name", (item["author"], item["name"]))):
            other = names.setdefault((what, value), key)
            if other != key:
                yield f"items '{other}' and '{key}' have one {what}: {value}"
    paths = {f"Data/{item.get('path')}" for item in entries.values()}
    for name in files:
        hidden = name.rpartition("/")[2].startswith(".")
        if name.startswith("Data/") and not hidden and paths.isdisjoint(_above(name)):
            yield f"no item holds the file '{name}'"


def _above(path: str) -> Iterator[str]:
    """Yield a path and the folders that it lies in."""
    yield path
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _unique(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice += [key for key, count in counts.items() if count > 1][:1]
    return found


def _known_format(version: object) -> bool:
    parts = version.split(".") if isinstance(version, str) else []
    return (
        len(parts) == 3
        and all(part.isdecimal() and len(part) < 9 for part in parts)
        and tuple(map(int, parts)) <= _FILE_FORMAT
    )


def version_problems(package: Package) -> Iterator[Problem]:
    """Yield where a model needs a later specification version, or says what no ML Program may."""
    model = package.model
    version = model.specificationVersion
    if version not in SYSTEMS:
        known = ", ".join(map(str, SYSTEMS))
        yield "its specification", f"version {version} cannot hold an ML Program; {known} can"
        return
    for name, function in sorted(package.functions.items()):
        if version < (needed := _OPSETS.get(function.opset, 0)):
            yield (
                f"function '{name}'",
                f"opset {function.opset} is newer than specification version {version}; it needs "
                f"{needed}, {SYSTEMS[needed]}",
            )
    for what, needed in _features(model):
        if version < needed:
            yield (
                "its specification",
                f"{what} need specification version {needed} ({SYSTEMS[needed]}); it is {version}",
            )
    if model.mlProgram.version != 1:
        yield "its ML Program", f"its version is {model.mlProgram.version}, not 1"
    if model.isUpdatable:
        yield "its specification", "isUpdatable is set; an ML Program cannot be updated"


def _features(model: Model) -> Iterator[tuple[str, int]]:
    """Yield what a description uses with the specification version that introduced it."""
    description = model.description
    if description.functions or description.defaultFunctionName:
        yield "several functions", 9
    parts: list[Description] = [description, *description.functions]
    for part in parts:
        if part.state:
            yield "states", 9
        types = [feature.type for feature in (*part.input, *part.output)]
        dtypes = {feature_types().get(_array(one).dataType) for one in types if _is_array(one)}
        if "float16" in dtypes:
            yield "arrays of FLOAT16", 7
        if "int8" in dtypes:
            yield "arrays of INT8", 10


def description_problems(package: Package, function: str) -> Iterator[Problem]:
    """Yield where the description of a function contradicts the function or itself.

    Names are compared with the function's by the check `metadata-names`.
    """
    description = package.described(function)
    message, block = package.functions[function], package.operations(function)
    made = {output.name: output.type for op in block.operations for output in op.outputs}
    given = {value.name: value.type for value in message.inputs}
    kinds = (
        ("input", description.input, given),
        ("state", description.state, given),
        ("output", description.output, given | made),
    )
    for kind, features, types in kinds:
        yield from _twice(kind, [feature.name for feature in features])
        for feature in features:
            where = f"{kind} '{feature.name}'"
            for problem in _feature_problems(feature.type, kind):
                yield where, problem
            if (declared := types.get(feature.name)) is not None:
                for problem in _contradictions(feature.type, declared, kind):
                    yield where, problem
    if description.input and all(feature.type.isOptional for feature in description.input):
        yield "its inputs", "all of them are optional; at least one must not be"
    if (name := description.predictedFeatureName) and name not in made:
        yield "predictedFeatureName", f"'{name}' is none of its outputs"


def model_description_problems(package: Package) -> Iterator[str]:
    """Yield what is wrong with the parts of a description that belong to no function."""
    description = package.model.description
    counts = Counter(entry.name for entry in description.functions)
    for name, count in counts.items():
        if name not in package.functions:
            yield f"it describes a function '{name}', which the program does not have"
        elif count > 1:
            yield f"it describes the function '{name}' {count} times"
    if not description.functions:
        name = description.defaultFunctionName
        if name in package.functions:
            yield f"defaultFunctionName is '{name}', although no functions are described"
        return
    own = any(entry.input or entry.output for entry in description.functions)
    for what in ("input", "output", "state", "trainingInput") if own else ():
        if getattr(description, what):
            yield f"the top level describes {what}s; only its functions may have any"


def _twice(kind: str, names: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{kind} '{name}'", "is described twice"
        if not name:
            yield f"an unnamed {kind}", "has no name"
        seen.add(name)


def _is_array(feature: FeatureType) -> bool:
    return feature.WhichOneof("Type") in ("multiArrayType", "stateType")


def _array(feature: FeatureType) -> ArrayFeatureType:
    is_state = feature.WhichOneof("Type") == "stateType"
    return feature.stateType.arrayType if is_state else feature.multiArrayType


def _feature_problems(feature: FeatureType, kind: str) -> Iterator[str]:
    """Yield what is wrong with a description whatever the function has."""
    is_state = feature.WhichOneof("Type") == "stateType"
    if feature.WhichOneof("Type") is None:
        yield "its description has no type"
    elif kind != "input" and is_state != (kind == "state"):
        yield f"is described as {'a state' if is_state else 'no state'}"
    if feature.isOptional and kind != "input":
        yield "is optional; only an input can be"
    if not _is_array(feature):
        return
    array = _array(feature)
    if array.dataType not in feature_types():
        yield f"its array has the unknown dtype {array.dataType}"
    shape = tuple(array.shape)
    if any(size < 0 for size in shape):
        yield f"its shape {list(shape)} has a negative size"
    match array.WhichOneof("ShapeFlexibility"):
        case "enumeratedShapes":
            listed = [tuple(entry.shape) for entry in array.enumeratedShapes.shapes]
            if not listed or not all(listed):
                yield "it enumerates no shapes, or one without sizes"
            elif shape and shape not in listed:
                yield f"its default shape {list(shape)} is not one of those enumerated"
        case "shapeRange":
            yield from _range_problems(array, shape)
        case None if not shape and kind != "output":
            yield "its description has no shape"


def _range_problems(array: ArrayFeatureType, shape: tuple[int, ...]) -> Iterator[str]:
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    for axis, (low, high) in enumerate(ranges):
        if 0 < high < low:
            yield f"its range of axis {axis} is {low} to {high}"
    if not shape:
        return
    if len(shape) != len(ranges):
        yield f"its default shape has {len(shape)} axes, its range {len(ranges)}"
    elif not all(
        low <= size and (high < 0 or size <= high)
        for size, (low, high) in zip(shape, ranges, strict=True)
    ):
        yield f"its default shape {list(shape)} is outside its range"


def _contradictions(feature: FeatureType, declared: ValueType, kind: str) -> Iterator[str]:
    """Yield how a feature differs from the type that the function declares."""
    is_state = declared.WhichOneof("type") == "stateType"
    if (kind == "state") != is_state and kind != "output":
        yield f"is described as {kind}, but the function has a {'state' if is_state else 'tensor'}"
        return
    if is_state:
        declared = declared.stateType.wrappedType
    if declared.WhichOneof("type") != "tensorType":
        return  # the label and the probabilities of a classifier
    dims = declared_shape(declared.tensorType)
    if any(d.unknown.variadic for d in declared.tensorType.dimensions):
        return
    if feature.WhichOneof("Type") == "imageType":
        yield from _image_contradictions(feature.imageType, dims)
    elif _is_array(feature):
        yield from _array_contradictions(_array(feature), dims, dtype_of(declared), kind)


def _array_contradictions(
    array: ArrayFeatureType, dims: tuple[int | None, ...], dtype: str | None, kind: str
) -> Iterator[str]:
    described_as = feature_types().get(array.dataType, "").upper()
    if described_as and dtype and described_as != dtype:
        yield f"is described as {described_as}, but the function has {dtype}"
    own = core_ml_shape(dims) if None not in dims else dims  # type: ignore[arg-type]
    shapes = list(_shapes(array))
    for shape in shapes:
        if len(shape) != len(own) or any(
            wanted is not None and have not in (None, wanted)
            for have, wanted in zip(shape, own, strict=True)
        ):
            text = f"shape {shape_text(shape)}, but the function has {shape_text(own)}"
            yield f"is described with {text}"
            return
    if kind == "input" and None in own and array.WhichOneof("ShapeFlexibility") is None:
        yield f"the function has shape {shape_text(own)}, but the description allows one shape only"
    for axis, wanted in enumerate(own):
        if wanted is not None and any(shape[axis] is None for shape in shapes):
            yield f"its description allows several sizes of axis {axis}; the function has {wanted}"


def _shapes(array: ArrayFeatureType) -> Iterator[tuple[int | None, ...]]:
    """Yield the shapes that a description allows; None is an axis of several sizes."""
    if array.shape:
        yield tuple(array.shape)
    match array.WhichOneof("ShapeFlexibility"):
        case "enumeratedShapes":
            yield from (tuple(entry.shape) for entry in array.enumeratedShapes.shapes)
        case "shapeRange":
            ranges = array.shapeRange.sizeRanges
            yield tuple(r.lowerBound if r.lowerBound == r.upperBound else None for r in ranges)


def _image_contradictions(image: ImageFeatureType, dims: tuple[int | None, ...]) -> Iterator[str]:
    channels = _CHANNELS.get(image.colorSpace)
    flexible = image.WhichOneof("SizeFlexibility") is not None
    wanted = (1, channels, *((None, None) if flexible else (image.height, image.width)))
    if len(dims) != 4 or any(
        None not in (have, want) and have != want for have, want in zip(dims, wanted, strict=False)
    ):
        text = f"shape {shape_text(wanted)}, but the function has {shape_text(dims)}"
        yield f"is described as an image of {text}"
