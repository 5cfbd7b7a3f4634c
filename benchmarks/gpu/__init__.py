"""The sections of `benchmarks/on_gpu.py`: what holds on the device, what it costs, and the tables of both."""
