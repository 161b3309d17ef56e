"""The model that is trained from scratch on a laptop: its data, tokenizer and recipe."""
