"""The dashboards as code. ``python -m dashboards.source`` writes their JSON to ``dashboards/grafana/dashboards``.

:mod:`~dashboards.source.queries` holds the queries, :mod:`~dashboards.source.panels` the look of panels, and
:mod:`~dashboards.source.board` what all dashboards share: variables, links, the grid.
"""
