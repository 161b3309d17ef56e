"""The page on which people ask about an image and an audio clip of their own."""
