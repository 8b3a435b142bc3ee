"""Readers of training frameworks' own files: one file per framework, the same verbs in each.

    detect(path) -> bool                     is this a file of that framework? never raises on any content
    read(path) -> object                     the file's content, tensors left in the file
    training_state(path) -> TrainingState    its networks and its optimizers

An adapter registers under the entry-point group `surgery.adapters`. None of them executes anything that a
file says, and none needs its framework to be installed.
"""
