"""The equation: batches of tokens, calls of parts, credit, and the product of the factors."""
