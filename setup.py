"""Packaging. Version pins live in requirements/*.txt and nowhere else."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
TOPS = ("cppo_verl", "hydra_plugins", "data_prep", "recipe")


def requirements(name: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name="cppo_verl",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "cppo_verl/__init__.py").read_text(encoding="utf-8"))[1],
    description="CPPO and the trust regions it is compared with, as a plug-in for verl",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["reinforcement learning", "language models", "trust region", "policy optimization", "verl"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_namespace_packages(include=[f"{top}{rest}" for top in TOPS for rest in ("", ".*")]),
    package_data={"cppo_verl": ["*/assets/*", "conf/**/*.yaml", "paper/*.csv", "py.typed"]},
    install_requires=requirements("base"),
    extras_require={name: requirements(name) for name in ("cpu", "gpu", "dev", "real")},
    entry_points={
        "console_scripts": ["cppo-verl = cppo_verl.cli.main:main"],
        "verl.plugins": ["cppo_verl = cppo_verl.integration.plugin"],
        "vllm.general_plugins": ["cppo_verl = cppo_verl.integration.cpu.vllm_plugin:register"],
    },
)
