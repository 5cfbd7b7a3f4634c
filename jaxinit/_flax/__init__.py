"""What Flax users need beyond initializers: residual modules, and the whole-model methods for Flax models.

Linen and NNX each have files of their own, since either loads without the other; what both share is in
`_residual.py`. `jaxinit/linen.py` and `jaxinit/nnx.py` name what is public.
"""
