"""The page on which people ask about a picture and a sound of their own."""
