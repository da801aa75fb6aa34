"""Where the parts of an .mlpackage stand, and the manifest that says so.

Source: what coremltools' `libmodelpackage` writes. Its identifiers are random; ours come from the
content, so that the same content gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

MANIFEST = "Manifest.json"
SPECIFICATION = "model.mlmodel"
WEIGHTS = "weights/weight.bin"
WEIGHT_REFERENCE = f"@model_path/{WEIGHTS}"
_AUTHOR = "com.apple.CoreML"


def data_folder(package: Path) -> Path:
    """Return the folder of a package that holds its specification and its weights."""
    return package / "Data" / _AUTHOR


def write_manifest(package: Path, digest: bytes) -> None:
    """Write `Manifest.json`; `digest` stands for the package's content.

    Without it a folder is no package: write it last.
    """
    items = {
        "specification": (SPECIFICATION, "CoreML Model Specification", SPECIFICATION),
        "weights": ("weights", "CoreML Model Weights", "weights"),
    }
    identifiers = {key: str(uuid.uuid5(uuid.UUID(bytes=digest[:16]), key)) for key in items}
    entries = {
        identifiers[key]: {
            "author": _AUTHOR,
            "description": description,
            "name": name,
            "path": f"{_AUTHOR}/{path}",
        }
        for key, (name, description, path) in items.items()
    }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": dict(sorted(entries.items())),
        "rootModelIdentifier": identifiers["specification"],
    }
    (package / MANIFEST).write_text(json.dumps(content, indent=4) + "\n")
