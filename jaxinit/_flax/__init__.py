"""What Flax users need beyond initializers: residual modules, and the whole-model methods for modules as they are.

Linen and NNX each have files of their own, since either loads without the other; what both do stands in
`_residual.py`. `jaxinit/linen.py` and `jaxinit/nnx.py` name what is public.
"""
