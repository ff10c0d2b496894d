"""``fastvq demo``: real jobs on real input, one module each.

Every demo has ``run(output_dir, *, n_threads, random_state, echo)``, fetches nothing while it runs,
and names the package to install where its data or its model is not there.
"""

from importlib import import_module

__all__ = ["DEMOS", "run"]

# What `fastvq demo WHAT` can be, and what each shows.
DEMOS = {
    "photographs": "palettes and block codebooks of two photographs; digits from one code each",
    "digits": "scikit-learn's MLP and forest as files that run with NumPy alone",
    "fashion": "a small convolutional network on Fashion-MNIST (needs torch and the data set)",
    "autoencoders": "three kinds restore and invent garments (needs torch and the data set)",
    "mobilenet": "MobileNetV2 names what is in photographs (needs torch and the weights)",
    "minilm": "MiniLM turns sentences into vectors (needs torch and the weights)",
}


def run(what, output_dir, *, n_threads=None, random_state=0, echo=print):
    """Run a demo of `DEMOS`: files go to a folder, which is made, and the report to ``echo``."""
    module = import_module(f"fastvq.demo.{what}")
    module.run(output_dir, n_threads=n_threads, random_state=random_state, echo=echo)
