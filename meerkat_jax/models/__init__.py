"""The towers (CLIP, CLAP), the language model, and Meerkat made of them."""
