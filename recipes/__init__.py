"""Programs that train, evaluate and synthesise; run them from a checkout."""

import speech  # noqa: F401 - before onnxruntime, whose telemetry it turns off
