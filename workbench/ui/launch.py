"""Launch: a form of a configuration."""

from workbench.ui.context import AppContext, Shared


def build_tab(context: AppContext, shared: Shared) -> None:
    """The tab."""
