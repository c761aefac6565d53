"""Make the tokenizer of a Mixtral folder give the tokens the model was trained on, once for all.

    python right_tokens.py FOLDER

Depending on their version, Transformers and vLLM make token 28792 of the `[` after <s>, where
sentencepiece and mistral-common give 733. This writes a tokenizer.json that leaves them no choice,
and puts the chat template into the folder where there is none. The files that were there are kept
beside it, under names that end with .before.
"""

import shutil
import sys
from pathlib import Path

import transformers
from tokenizers import normalizers

HERE, NAME = Path(__file__).parent, "mixtral-instruct.jinja"
TEMPLATE = next((p for p in (HERE / NAME, HERE.parent / "llama.cpp" / NAME) if p.exists()), None)
if TEMPLATE is None:
    sys.exit(f"put llama.cpp/{NAME} beside this script")
ASKED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
         {"role": "user", "content": "c"}]  # fmt: skip
RIGHT = [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793, 287, 2,
         733, 16289, 28793, 277, 733, 28748, 16289, 28793]  # fmt: skip


def ids(folder: Path) -> list[int]:
    """The tokens of a short conversation, as Transformers reads the folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.read_text("utf-8")
    return tokenizer.apply_chat_template(ASKED, return_dict=True)["input_ids"]


def mend(folder: Path) -> None:
    """Write tokenizer.json: each piece of text between control tokens begins with a space."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        before = folder / f"{name}.before"
        if (folder / name).exists() and not before.exists():
            shutil.copy(folder / name, before)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Look, mend where needed, and look again."""
    if not (folder / "chat_template.jinja").exists():
        shutil.copy(TEMPLATE, folder / "chat_template.jinja")
    before = ids(folder)
    if before != RIGHT:
        mend(folder)
    after = ids(folder)
    print(f"before {before[:4]}, now {after[:4]}: {'right' if after == RIGHT else 'STILL WRONG'}")
    sys.exit(after != RIGHT)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("give the folder of the full weights: python right_tokens.py FOLDER")
    main(Path(sys.argv[1]))
