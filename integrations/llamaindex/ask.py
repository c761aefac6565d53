"""LlamaIndex over `mixtral-rag serve`: its own index with our embedder, answered by our model.

python ask.py http://127.0.0.1:8000/v1 FOLDER "Who is the author of bzip2?"
"""

import os
import sys

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI


def main(url: str, folder: str, question: str) -> None:
    server = {"api_base": url, "api_key": os.environ.get("MIXTRAL_RAG_API_KEY", "none")}
    name = OpenAI(base_url=url, api_key=server["api_key"]).models.list().data[0].id
    llm = OpenAILike(model=name, is_chat_model=True, context_window=8192, max_tokens=64, **server)
    embedder = OpenAILikeEmbedding(model_name="multilingual-e5-small", **server)
    documents = SimpleDirectoryReader(folder, required_exts=[".md", ".txt"]).load_data()
    index = VectorStoreIndex.from_documents(documents, embed_model=embedder)
    print("LlamaIndex's own:", index.as_query_engine(llm=llm, similarity_top_k=1).query(question))
    # What `mixtral-rag ingest` took in: the model `documents`, with citations.
    print(
        "mixtral_rag's:",
        OpenAILike(model="documents", is_chat_model=True, **server).complete(question),
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
