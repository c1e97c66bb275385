"""How to get what is optional, in the same words wherever it is missing."""

HABITAT_LAB = "run pip install '.[habitat]' in a checkout of navprune, best into a fresh environment"
OPENCV = "pip install --force-reinstall --no-deps 'opencv-python-headless<4.12'"  # later ones ask for NumPy 2
HABITAT_SIM = (
    "its stable conda packages end at Python 3.9, nightly ones are reported for 3.10 and 3.11 (docs/habitat.md): take "
    "one, or build it from its source for this Python, with NumPy 1.26 as habitat-lab asks; or use simulator=embedded, "
    "which gives the same numbers without it"
)
DEPLOY = "pip install onnx onnxruntime openvino"
DEPLOY_GPU = "pip install onnx onnxruntime-gpu"
COMPRESSED = "run pip install '.[compressed]' in a checkout of navprune"
IMAGES = "run pip install '.[images]' in a checkout of navprune, or pip install scikit-learn"
