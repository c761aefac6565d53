"""Chinese-Mixtral-Instruct in Transformers' own pipeline, with the tokens it was trained on.

    python chat.py FOLDER "用三句话介绍苏州园林。" [--4bit] [--adapter LORA_FOLDER]

Run `right_tokens.py FOLDER` first.
"""

import argparse
from typing import Any

import transformers


def load_tokenizer(folder: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=True)
    assert ids["input_ids"][:3] == [1, 733, 16289], f"run: python right_tokens.py {folder}"
    return tokenizer


def load_model(folder: str, *, is_4bit: bool, adapter: str | None) -> Any:
    options: dict[str, Any] = {"dtype": "auto", "device_map": "auto"}
    if is_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16"
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    if adapter:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("question")
    parser.add_argument("--4bit", dest="is_4bit", action="store_true")
    parser.add_argument("--adapter")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    given = parser.parse_args()
    pipe = transformers.pipeline(
        "text-generation",
        model=load_model(given.folder, is_4bit=given.is_4bit, adapter=given.adapter),
        tokenizer=load_tokenizer(given.folder),
    )
    said = pipe(
        [{"role": "user", "content": given.question}],
        max_new_tokens=given.max_new_tokens, do_sample=False, return_full_text=False,
    )  # fmt: skip
    print(said[0]["generated_text"].strip())


if __name__ == "__main__":
    main()
