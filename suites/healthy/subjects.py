"""The subjects of the suite, as a user names them: `[EXPORTER:]NAME[+SCHEME][/MODE]`."""

from __future__ import annotations

from pathlib import Path

from harness.fixtures.cache import fixture
from harness.fixtures.matrix import matrix
from harness.fixtures.varied import VARIED

VERSIONS = ("executorch@1.2.0", "executorch@1.3.1", "executorch@1.4.1", "executorch@1.5.1")
BY_US = (
    *(f"coreml:{name}" for name in matrix()),
    *(f"coreml:{name}" for name in VARIED),
    *(f"coreml:{name}/multifunction" for name in VARIED if name != "varied-unshared"),
    "coreml:tiny/single",
    "coreml:tiny+b4w/multifunction",
    "coreml:tiny+none/multifunction",
    "coreml:qwen3/multifunction",
    "coreml:layers-12/multifunction",
)
BY_EXECUTORCH = (
    *(f"{version}:tiny/{mode}" for version in VERSIONS for mode in ("single", "multifunction")),
    "executorch:tiny+b4w/multifunction",
    "executorch:layers-12/multifunction",
    "executorch:varied-ones/single",
    "executorch:varied-normal/multifunction",
    "executorch:varied-torch/single",
    "executorch:varied-zero/multifunction",
    "executorch:varied-unshared",
    "executorch:varied-heads/multifunction",
    "executorch:varied-wide-heads/single",
    "executorch:varied-qwen3/single",
    "executorch:varied-long/single",
    "executorch@1.3.1:varied-normal/multifunction",
    "executorch@1.5.1:varied-ones/multifunction",
    *(f"executorch:{name}" for name in matrix()),
)
OF_USERS = ("users-llama", "coreml:users-llama/multifunction", "users-qwen3")
_TOML = """
[subjects.users-llama]
checkpoint = "llama"
params = "llama/config.json"
exporter = "executorch"
modes = ["single", "multifunction"]
options = { input_len = 8, max_context_len = 40, linear_quantize = "none" }

[subjects.users-qwen3]
checkpoint = "qwen3.pth"
params = "qwen3.json"
exporter = "coreml"
options = { input_len = 5, max_context_len = 33, embedding_quantize = "4,32" }
"""


def write_project(folder: Path) -> None:
    """Write `harness.toml` and the files of `OF_USERS`: bf16 by Hugging Face's names, and Meta's.

    The weights are those of two models of `VARIED`.
    """
    import json
    import shutil

    import torch
    from safetensors.torch import save_file

    from harness.models.config import load_params

    llama, qwen3 = fixture("varied-normal"), fixture("varied-qwen3")
    config = load_params(llama.params)
    weights = torch.load(llama.checkpoint, weights_only=True)
    names = config.hugging_face_names
    (folder / "llama").mkdir()
    save_file(
        {names[name]: weight.bfloat16().contiguous() for name, weight in weights.items()},
        folder / "llama" / "model.safetensors",
    )
    sizes = {
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
    }
    (folder / "llama" / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    shutil.copyfile(qwen3.checkpoint, folder / "qwen3.pth")
    shutil.copyfile(qwen3.params, folder / "qwen3.json")
    (folder / "harness.toml").write_text(_TOML, encoding="utf-8")
