"""Runs: recipe, conductor, checkpoint, ledger, card, comparison."""
