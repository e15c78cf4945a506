"""Words that a user taught."""
