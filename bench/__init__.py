"""Benchmarks that can be believed: `python -m bench --help`.

Every case first passes a correctness gate; then all providers (ours, plain PyTorch,
`torch.compile`, oneDNN, public peers) are timed in interleaved rounds, beside a ceiling measured
in the same rounds.
"""
