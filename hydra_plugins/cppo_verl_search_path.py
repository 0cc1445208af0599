"""Adds this package's config groups to Hydra's search path, so that ``+trust_region=cppo`` works anywhere."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cppo_verl import presets


class CppoVerlSearchPath(SearchPathPlugin):
    """Appends ``pkg://cppo_verl.conf``, and ``conf`` of packages that bring rules, behind the application's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="cppo_verl", path="pkg://cppo_verl.conf")
        for folder in presets.installed():
            search_path.append(provider=presets.RULES_GROUP, path=f"file://{folder}")
