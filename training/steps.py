"""The steps of a run on one axis: the stages of a plan follow one another."""


class StepsInAll:
    """Counts the steps of all stages so far. Records of a log are given to it in their order."""

    def __init__(self):
        self.before, self.last, self.stage = 0, 0, None  # steps of earlier stages, and of this one

    def at(self, step: float, stage: object) -> float:
        """Return how many steps the run has done at a step of a stage; None is a run without a plan."""
        if stage != self.stage:
            self.before, self.stage = self.before + self.last, stage
        self.last = step
        return self.before + step
