"""Kernels of every operation: C++, CUDA C++ and Triton side by side, free of PyTorch headers."""
