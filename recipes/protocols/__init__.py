"""What is measured, one protocol a module; `recipes.evaluate` runs them."""
