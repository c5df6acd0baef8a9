"""How models come and go: saved programs."""
