"""Builds the package with the settings files, which `picospec config example` prints."""

from __future__ import annotations

from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into picospec/; an editable install reads it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("configs", f"{self.build_lib}/picospec/configs")
