"""Triton kernels executed on the CPU.

Triton decides at its import whether kernels are compiled or interpreted, so these tests live in a
process of their own: tests/kernels/test_triton_interpreter.py starts it. They use fp32, fp64 and
fp16, because the interpreter computes bf16 wrongly without saying so.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
