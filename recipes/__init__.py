"""Programs that train, evaluate and synthesise; run them from a checkout."""
