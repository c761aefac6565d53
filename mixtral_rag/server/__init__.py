"""The server: OpenAI's API over the model and the documents, and a page for the browser."""
