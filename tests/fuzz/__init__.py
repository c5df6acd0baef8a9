"""Random programs at the sizes that people use, held to the reference bit for bit: docs/fuzz.md."""
