"""What pyproject.toml cannot say: habitat_configs/ stands beside the package here and is installed inside it."""

from setuptools import find_packages, setup

CONFIGS = "navprune.habitat_configs"

setup(
    packages=[*find_packages(include=["navprune*"]), CONFIGS],
    package_dir={CONFIGS: "habitat_configs"},
    package_data={CONFIGS: ["**/*.yaml"], "navprune.reports": ["*.html"]},
)
