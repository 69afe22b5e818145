"""Steps as OpenTelemetry spans: their ids, contents and encoding, sampling, and delivery to a collector."""
