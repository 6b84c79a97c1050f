"""InfoGAN (Chen et al., 2016), trained fast and measured honestly."""

from fastinfogan.codes import Categorical, Gaussian, Latents, LatentSpec, Uniform

__version__ = "0.1.0"
__all__ = ["Categorical", "Gaussian", "LatentSpec", "Latents", "Uniform", "__version__"]
