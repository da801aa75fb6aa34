"""Makes payloads and programs of any content from real packages."""

import json

from harness.artifact import Package
from harness.artifact.files import _read_tree, flatten
from harness.artifact.proto import parse_specification


def payload(package, **methods):
    """A flattened package; `methods` gives (input names, output names) by method;
    a method named `single` makes the metadata of a model with one method.
    """
    names = {name: {"inputNames": i, "outputNames": o} for name, (i, o) in methods.items()}
    content = names.get("single", {"methods": names})
    files = {"metadata.json": json.dumps({**content, "identifier": "made"}).encode()}
    files |= {f"model.mlpackage/{name}": bytes(data) for name, data in package.files.items()}
    return flatten(files)


def reference(key, function, version=1):
    """The bytes of a delegate that refers to the program's named data."""
    return b"CMJR" + json.dumps({"version": version, "key": key, "functionName": function}).encode()


def edited(package, change):
    """Return a package in memory whose specification `change` has edited."""
    model = parse_specification(package.files[package.spec_path], "here")
    change(model)
    files = {**package.files, package.spec_path: memoryview(model.SerializeToString())}
    return Package(files, "edited")


def with_tree(data, change):
    """Return a payload whose file tree, a list of nodes, `change` has edited."""
    nodes = _read_tree(memoryview(data), "payload")
    tree = json.dumps({"nodes": nodes}, separators=(",", ":")).encode()[::-1]
    contents = data.removesuffix(tree)
    assert contents != data
    change(nodes)
    return contents + json.dumps({"nodes": nodes}).encode()[::-1]


def rename(old, new):
    """A change of a tree: it renames the file `old` of the root, or of a folder, to `new`."""

    def change(nodes):
        (children,) = [node["children"] for node in nodes if old in node["children"]]
        children[new] = children.pop(old)

    return change


def program(path, methods, named=None):
    """Write a .pte; `methods` gives the payloads of each method's delegates."""
    # imported late: ExecuTorch's serializer takes ten seconds
    from executorch.exir.schema import DelegateCall

    from tests.artifact import pte_files

    plans, payloads = [], []
    for name, delegates in methods.items():
        numbers = [("CoreMLBackend", len(payloads) + n) for n in range(len(delegates))]
        payloads += delegates
        calls = [DelegateCall(n, [0, 1]) for n in range(len(delegates))]
        values = [pte_files.tensor(1, 64), pte_files.tensor(1, 64)]
        plans.append(pte_files.plan(name, values, [0], [1], calls, delegates=numbers))
    path.write_bytes(pte_files.serialize(plans, payloads=payloads, named=named))
    return path
