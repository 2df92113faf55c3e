"""Packaging of vgan_fast.

The code of `vgan_fast.kernels` and `vgan_fast.loaders` lives in the top-level folders `kernels/`
and `loaders/`; `package_dir` maps them, and two symbolic links inside `vgan_fast/` give a checkout
and type checkers the same names.
"""

from setuptools import setup

BENCH = [
    "pytest>=8.3,<10",
    "pytest-benchmark>=5.1,<6",
    "matplotlib>=3.9,<4",
]

EXPERIMENTS = [
    "scikit-learn>=1.5,<2",
    "matplotlib>=3.9,<4",
]

HUB = ["huggingface_hub>=1.0,<3"]

ONNX = ["onnx>=1.18,<2", "onnxscript>=0.7,<1"]

STUDY = [
    "flask>=3.0,<4",
    "waitress>=3.0,<4",
    "scipy>=1.15,<2",
]

setup(
    name="vgan_fast",
    version="0.1.0",
    description="Generative models of short video, trained as fast as the hardware allows",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "vgan_fast",
        "vgan_fast.baselines",
        "vgan_fast.evaluation",
        "vgan_fast.interchange",
        "vgan_fast.kernels",
        *(
            f"vgan_fast.kernels.{op}"
            for op in ("blend", "conv", "frames", "head", "langevin", "loss", "norm")
        ),
        "vgan_fast.loaders",
        "vgan_fast.loaders.preparation",
        "vgan_fast.restoration",
        "vgan_fast.stgconvnet",
        "vgan_fast.study",
        "vgan_fast.transfer",
    ],
    package_dir={"vgan_fast.kernels": "kernels", "vgan_fast.loaders": "loaders"},
    package_data={
        "vgan_fast": ["py.typed"],
        "vgan_fast.loaders.preparation": ["report.html.j2"],
        "vgan_fast.study": ["page/*"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26,<3",
        "nvidia-dali-cuda130>=2.4,<3; platform_system == 'Linux'",
        "opencv-python-headless>=4.13,<6",
        "av>=18,<19",
        "imageio>=2.36,<3",
        "pillow>=11,<14",
        "simplejpeg>=1.9,<2",
        "scenedetect-headless>=0.7,<0.8",
        "jinja2>=3.1,<4",
        "platformdirs>=4.3,<5",
        "filelock>=3.16,<5",
        "click>=8.1,<9",
        "tqdm>=4.66,<5",
        "tensorboard>=2.18,<3",
        "safetensors>=0.5,<1",
        "msgspec>=0.19,<1",
    ],
    extras_require={
        "bench": BENCH,
        "docs": ["pdoc>=15,<17"],
        "experiments": EXPERIMENTS,
        "hub": HUB,
        "onnx": ONNX,
        "ray": ["ray>=2.40,<3"],
        "study": STUDY,
        "test": [
            *BENCH,
            *EXPERIMENTS,
            *HUB,
            *ONNX,
            *STUDY,
            "playwright>=1.50,<2",
            "hypothesis>=6.100,<7",
            "onnxruntime>=1.20,<2",
            "ruff>=0.12,<1",
        ],
    },
)
