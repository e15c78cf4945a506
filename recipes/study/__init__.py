"""For people who study the model: what happens inside it, and what becomes of its gradient."""
