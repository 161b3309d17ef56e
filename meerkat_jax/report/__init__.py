"""HTML, figures, tables and cards: what people look at."""
