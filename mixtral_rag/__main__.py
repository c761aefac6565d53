"""`python -m mixtral_rag` is the command `mixtral-rag`."""

from mixtral_rag.cli import main

main()
