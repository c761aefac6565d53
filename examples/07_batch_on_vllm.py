"""A hundred questions at once: vLLM computes them together.

    python examples/07_batch_on_vllm.py FOLDER_OF_FULL_WEIGHTS [questions]

On a GPU take off the three options; they let it run on a CPU with a small model.
"""

import sys
import time

from mixtral_rag import ChatChineseMixtral

CPU = {"enforce_eager": True, "gpu_memory_utilization": 0.3}


def main(model: str, n: str = "100") -> None:
    questions = [f"{a} 加 {a + 1} 等于多少？只写数字。" for a in range(int(n))]
    chat = ChatChineseMixtral(
        model=model, engine="vllm", n_ctx=512, dtype="float32", engine_options=CPU,
        temperature=0.0, max_tokens=8,
    )  # fmt: skip
    chat.invoke("你好")  # the engine starts with the first call
    started = time.perf_counter()
    answers = chat.batch(questions)
    seconds = time.perf_counter() - started
    for question, answer in list(zip(questions, answers, strict=True))[:3]:
        print(f"{question} {answer.text!r}")
    tokens = sum(a.usage_metadata["output_tokens"] for a in answers)
    print(f"{len(answers)} answers in {seconds:.1f} s, {tokens / seconds:.0f} tokens a second")


if __name__ == "__main__":  # vLLM starts a process, which runs the script again
    main(*sys.argv[1:3])
