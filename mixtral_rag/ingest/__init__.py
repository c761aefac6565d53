"""From files to passages: discover, parse in worker processes, split, embed, store."""
