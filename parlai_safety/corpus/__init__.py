"""The small corpus that ships: our own text, its seeded generator, its manifest and its statistics.

Ordinary and adversarial conversations, written for this project. Importing this package loads nothing; see
`load` for reading the packaged files, `build` for making them again and the README beside it for the data statement.
"""
