"""How many replicas of a model Ray Serve keeps, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """When there are more replicas of a model, and when fewer.

    Attributes:
        most: replicas.
        least: replicas; 0: none while nobody asks, and the first call waits for one to start.
        queue_delay_s: what batches may wait for a replica on average; where it is more, there are more replicas.
        up_after_s: for how long it must have been more.
        down_after_s: for how long fewer replicas must have been enough; and nobody have asked, before there is none.

    Raises:
        ValueError: they contradict each other.
    """

    most: int
    least: int = 1
    queue_delay_s: float = 0.02
    up_after_s: float = 5.0
    down_after_s: float = 60.0

    def __post_init__(self) -> None:
        if self.most < max(1, self.least):
            raise ValueError(f"most is {self.most}; it must be at least 1, and no less than least ({self.least})")


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """A model as a deployment of Ray Serve.

    Attributes:
        replicas: as many, where they are not scaled.
        num_cpus: cores that Ray sets aside for each; 0.5 lets two share one.
        num_gpus: GPUs, likewise: 0.25 puts four on one.
        memory_bytes: likewise; None: nothing is said.
        scaling: instead of `replicas`.
    """

    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory_bytes: int | None = None
    scaling: ScalingOptions | None = None

    @property
    def most_replicas(self) -> int:
        """That there can be."""
        return self.scaling.most if self.scaling else self.replicas
