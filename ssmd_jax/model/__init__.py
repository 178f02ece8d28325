"""Networks: parameters and arrays in, arrays out. Imports nothing else of this package."""
