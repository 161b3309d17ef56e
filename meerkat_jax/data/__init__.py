"""From media and questions to batches: the record, its text form, decoding, tokens, Grain."""
