"""What Grafana and Prometheus are given: dashboards as code in ``source``, everything they read beside it."""
