"""Fine-tuning with few labels, compared with training from scratch on the same labels.

`service.py` is the way in. `protocol.py` repeats an `experiment.py` over seeds, `train.py` trains
one classifier, and `store.py` saves the best one.
"""
