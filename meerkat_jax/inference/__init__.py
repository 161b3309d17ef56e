"""Answers: inputs, the decode loop, grammars, the engine."""
