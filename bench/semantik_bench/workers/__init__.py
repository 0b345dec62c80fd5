"""One module per contender, each run in a process and a virtual environment of its own.

They import nothing of this repository but `protocol`, since most run where semantik is not installed.
"""
