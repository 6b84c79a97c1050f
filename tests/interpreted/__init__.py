"""Properties of the Triton kernels under the interpreter; ``tests/test_triton_interpreted.py`` runs them."""
