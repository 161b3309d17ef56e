"""Building a source: validate its annotations, iterate over its examples, write records."""
