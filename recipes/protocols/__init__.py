"""Evaluation protocols, one per module; `recipes.evaluate` runs most of them."""
