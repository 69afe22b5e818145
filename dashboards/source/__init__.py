"""The dashboards as code. ``python -m dashboards.source`` writes their JSON to ``dashboards/grafana/dashboards``.

:mod:`~dashboards.source.queries` says which numbers are asked for, :mod:`~dashboards.source.panels` how they look,
:mod:`~dashboards.source.board` what all dashboards have in common: variables, links, the grid.
"""
