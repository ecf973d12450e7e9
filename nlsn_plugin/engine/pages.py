"""HTML pages of one file each, rendered from the templates beside this module."""

from __future__ import annotations

import jinja2

from nlsn_plugin.engine.names import readable


def render(template: str, **values: object) -> str:
    """Render a template as a page, its values escaped and made readable."""
    loader = jinja2.PackageLoader('nlsn_plugin.engine')
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return readable(environment.get_template(template).render(**values))
