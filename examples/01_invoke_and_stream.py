"""A first call, a stream, several at once, and what each of them took.

python examples/01_invoke_and_stream.py MODEL.gguf
"""

import sys

from mixtral_rag import ChatChineseMixtral, ChineseMixtral


def main(model: str) -> None:
    llm = ChineseMixtral(model=model, max_tokens=40)  # weights load with the first call
    print("invoke:", llm.invoke("Name three cities in China."))

    print("stream: ", end="")
    for text in llm.stream("Write one sentence about gardens.", temperature=0.0):
        print(text, end="", flush=True)

    chat = ChatChineseMixtral(model=model, max_tokens=24, temperature=0.0)  # the same weights
    questions = ["What is the capital of France?", "What is two and two?"]
    for question, message in zip(questions, chat.batch(questions), strict=True):
        used = message.usage_metadata
        print(f"\nbatch: {question} {message.text.strip()}")
        print(f"  {used['input_tokens']} tokens read, {used['output_tokens']} written,"
              f" ended by {message.response_metadata['finish_reason']}")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:2])
