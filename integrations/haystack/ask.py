"""A Haystack pipeline over `mixtral-rag serve`: embed, retrieve, prompt, generate.

python ask.py http://127.0.0.1:8000/v1 "How many days of leave?"
"""

import os
import sys

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret
from openai import OpenAI

TEXTS = ["Employees have fifteen days of leave a year.", "The office is open from nine to six."]
PROMPT = "{% for d in documents %}{{ d.content }}\n{% endfor %}\nAnswer briefly: {{ question }}"


def main(url: str, question: str) -> None:
    key = os.environ.get("MIXTRAL_RAG_API_KEY", "none")
    server = {"api_base_url": url, "api_key": Secret.from_token(key)}
    name = OpenAI(base_url=url, api_key=key).models.list().data[0].id
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    embedder = OpenAIDocumentEmbedder(model="multilingual-e5-small", progress_bar=False, **server)
    store.write_documents(embedder.run([Document(content=t) for t in TEXTS])["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", OpenAITextEmbedder(model="multilingual-e5-small", **server))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user(PROMPT)]))
    pipeline.add_component(
        "llm",
        OpenAIChatGenerator(
            model=name, generation_kwargs={"max_tokens": 48, "temperature": 0}, **server
        ),
    )
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "llm.messages")
    done = pipeline.run(
        {"embedder": {"text": question}, "prompt": {"question": question}},
        include_outputs_from={"retriever"},
    )
    print("found:", done["retriever"]["documents"][0].content)
    print("answer:", done["llm"]["replies"][0].text)


if __name__ == "__main__":
    main(*sys.argv[1:3])
