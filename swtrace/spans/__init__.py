"""Steps as OpenTelemetry spans: their ids, content and encoding, which are exported, and how they reach a collector."""
