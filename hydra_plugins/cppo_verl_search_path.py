"""Adds this package's config groups to Hydra's search path, so that ``+trust_region=cppo`` works anywhere."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class CppoVerlSearchPath(SearchPathPlugin):
    """Appends ``pkg://cppo_verl.conf`` behind the application's own configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="cppo_verl", path="pkg://cppo_verl.conf")
