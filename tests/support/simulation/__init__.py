"""An in-memory cluster behind the effects port: deterministic, in virtual time, without threads."""

from tests.support.simulation.clock import START, VirtualClock
from tests.support.simulation.cluster import Link, SimulatedCluster
from tests.support.simulation.jobs import Site
from tests.support.simulation.stages import Script

__all__ = ["START", "Link", "Script", "SimulatedCluster", "Site", "VirtualClock"]
