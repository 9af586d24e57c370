"""Wire formats: what workstation and cluster write for each other, one definition for both ends.

Python 3.9 and the standard library only. Every decoder is strict: what does not have the form it must
have raises `FormatError` and says what was found.
"""
