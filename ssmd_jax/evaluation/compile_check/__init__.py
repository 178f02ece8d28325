"""What a run would need and take on a machine that nobody has paid for yet, from the compiler's answer.

`check.check` does it; one idea a file.
"""
