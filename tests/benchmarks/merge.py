"""`merge` beside peft's merge_and_unload: seconds and peak memory, each in a process of its own.

    .venv/bin/python tests/benchmarks/merge.py [--folder DIR] [--layers 4] [--rounds 3]

A random Mixtral in bfloat16 (0.3 GB a layer by default) and LoRA weights of rank 16 on every linear
layer. Both start from the same files, write the same files and end with them; imports count alike.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS, PEFT = "mixtral-rag merge", "peft merge_and_unload"


def write_model(folder: Path, n_layers: int) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.MixtralConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=5376, num_hidden_layers=n_layers,
        num_attention_heads=8, num_key_value_heads=2, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(folder / "base", max_shard_size="400MB")
    lora = {}
    for file in sorted((folder / "base").glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if tensor.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
                key = f"base_model.model.{name.removesuffix('.weight')}"
                lora[f"{key}.lora_A.weight"] = torch.randn(16, tensor.shape[1])
                lora[f"{key}.lora_B.weight"] = torch.randn(tensor.shape[0], 16)
    (folder / "lora").mkdir()
    save_file(lora, folder / "lora" / "adapter_model.safetensors")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"]
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32,
                "target_modules": targets}  # fmt: skip
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))


def merge_with(way: str, folder: Path) -> None:
    if way == OURS:
        from mixtral_rag.weights.merge import merge

        merge(folder / "base", [folder / "lora"], folder / "out")
        return
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, folder / "lora").merge_and_unload()
    model.save_pretrained(folder / "out", max_shard_size="400MB")
    for file in (folder / "out").iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--do", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        merge_with(arguments.do[0], Path(arguments.do[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    seconds: dict[str, list[float]] = {OURS: [], PEFT: []}
    memory: dict[str, list[float]] = {OURS: [], PEFT: []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if os.fork() == 0:
            write_model(folder, arguments.layers)
            os._exit(0)
        os.wait()
        size = sum(f.stat().st_size for f in (folder / "base").glob("*.safetensors"))
        for _ in range(arguments.rounds):
            for way in seconds:
                shutil.rmtree(folder / "out", ignore_errors=True)
                os.sync()
                started = time.perf_counter()
                command = [sys.executable, __file__, "--do", way, str(folder)]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds[way].append(time.perf_counter() - started)
                memory[way].append(float(out.split()[-1]))
    print(f"{size / 1e9:.2f} GB, {arguments.rounds} rounds, medians\n")
    for way in seconds:
        time_ratio = statistics.median(
            a / b for a, b in zip(seconds[way], seconds[PEFT], strict=True)
        )
        peak_ratio = statistics.median(
            a / b for a, b in zip(memory[way], memory[PEFT], strict=True)
        )
        print(
            f"{way:24} {statistics.median(seconds[way]):6.1f} s ({time_ratio:.2f})  "
            f"{statistics.median(memory[way]):6.0f} MB ({peak_ratio:.2f})"
        )


if __name__ == "__main__":
    main()
