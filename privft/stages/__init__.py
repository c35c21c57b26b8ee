"""What each stage of a run does once it may: data, planning, running, auditing, releasing.

`privft.gate` decides whether a stage may be entered; nothing here asks that, and nothing outside
the gate and its tests calls these modules.  Importing this package loads no torch.
"""
