"""The moving-photos corpus: sequences with exact flow, made from real photos."""
