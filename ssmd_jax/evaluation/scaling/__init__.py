"""The scaling study: training, sampling and checkpoints on 1, 2, 4, 8 devices of one host.

`study.study` does it; one idea a file.
"""
