"""Kernels of every operation: C++, CUDA C++ and Triton side by side. Nothing here includes PyTorch headers."""
