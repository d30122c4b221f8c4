"""The command `foldserve export`.

command.py         its arguments, its progress lines, what it does
example_option.py  --example: from words to tensors
summary.py         the table at the end
"""
