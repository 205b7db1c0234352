"""The commands of `onebase`, by subject; each imports what it needs when it runs."""
