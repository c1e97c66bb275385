"""Names of the pruning methods and what each is, in one line with its source; free of torch, for `--help`."""

GATES = "gates"

METHODS = {
    GATES: "pruning from scratch: gates learned on wider, random weights (Wang et al., AAAI 2020)",
    "magnitude": "L1 norm of a unit's filters over its layer's mean (after Li et al., ICLR 2017)",
    "magnitude-l2": "L2 norm of a unit's filters over its layer's mean (after Li et al., ICLR 2017)",
    "uniform": "control: the same share of every layer, the filters of largest L1 norm stay",
    "random": "control: units drawn at random (Blalock et al., MLSys 2020)",
}
