"""Watch: one run as it goes."""

from workbench.ui.context import AppContext, Shared


def build_tab(context: AppContext, shared: Shared) -> None:
    """The tab."""
