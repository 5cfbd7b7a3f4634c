"""The sections of `benchmarks/on_gpu.py`: what is correct on the device, what it costs, and the tables of both."""
