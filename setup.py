"""Installs packnet_tf."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "packnet_tf" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

setuptools.setup(
    name="packnet_tf",
    version=VERSION,
    description="PackNet for Keras 3: several tasks packed into one network",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=["packnet_tf"],
    package_data={"packnet_tf": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "absl-py>=1.0",
        "h5py>=3.8,<4",
        # tensorflow-datasets downloads with it, and does not declare it.
        "importlib_resources>=5",
        "keras>=3.10,<4",
        "keras-cv>=0.9,<0.10",  # For the programs in examples/.
        "ml-dtypes>=0.4",
        "numpy>=1.26",
        "tensorflow>=2.18,<2.22",
        "tensorflow-datasets>=4.9",  # For the programs in examples/.
        "tensorflow-model-optimization>=0.8.1,<0.9",
    ],
    entry_points={"console_scripts": ["packnet = packnet_tf.cli:run"]},
    extras_require={
        "plot": ["matplotlib>=3.8"],
        "examples": ["matplotlib>=3.8", "pillow>=10", "tensorboard>=2.18"],
        "test": [
            "hypothesis>=6.100",
            "matplotlib>=3.8",
            "pillow>=10",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.17,<0.18",
            "tensorboard>=2.18",
            "tf_keras>=2.18",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
