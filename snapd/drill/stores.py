"""What each kind of store brings to the drill: its scenarios and how one is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from snapd.drill.measure import Run
from snapd.drill.mooncake_scenarios import MOONCAKE_SCENARIOS, run_mooncake_scenario
from snapd.drill.mooncake_site import MooncakeSettings
from snapd.drill.offload import CASES, OffloadCase, OffloadResult, run_offload_case
from snapd.drill.plan import SCENARIOS, DrillPlan
from snapd.drill.scenarios import Progress, run_scenario
from snapd.errors import SettingError


class StoreKind(Protocol):
    """A store that can be drilled."""

    @property
    def scenarios(self) -> Mapping[str, str]:
        """Its scenarios in their order, and what each does."""

    @property
    def offload_cases(self) -> Sequence[OffloadCase]:
        """Kills to compare the store's own SSD offload by; none for a store that has none."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Settings that only this store has."""

    @property
    def is_polled(self) -> bool:
        """Whether snapd learns by polling what was put."""

    def run(
        self, name: str, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> Run:
        """Run one scenario. Raises SnapdError."""

    def run_offload(
        self, case: OffloadCase, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> OffloadResult:
        """Run one kill of the comparison. Raises SnapdError."""


@dataclass(frozen=True)
class BundledKind:
    """The bundled store."""

    scenarios: Mapping[str, str] = field(default_factory=lambda: SCENARIOS)
    offload_cases: Sequence[OffloadCase] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_polled: bool = False

    def run(
        self, name: str, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> Run:
        """Run one scenario."""
        return run_scenario(name, plan, place, progress, keep=keep)

    def run_offload(
        self, case: OffloadCase, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> OffloadResult:
        """There is none."""
        raise SettingError("the bundled store has no SSD offload of its own")


@dataclass(frozen=True)
class MooncakeKind:
    """Real Mooncake."""

    settings: MooncakeSettings
    scenarios: Mapping[str, str] = field(default_factory=lambda: MOONCAKE_SCENARIOS)
    offload_cases: Sequence[OffloadCase] = CASES
    is_polled: bool = True

    @property
    def facts(self) -> Mapping[str, Any]:
        """What Mooncake was started with."""
        return {
            "poll_s": self.settings.poll_seconds,
            "client_ttl_s": self.settings.client_ttl_seconds,
            "store_service": "launcher" if self.settings.launcher else "vanilla",
        }

    def run(
        self, name: str, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> Run:
        """Run one scenario."""
        return run_mooncake_scenario(name, plan, self.settings, place, progress, keep=keep)

    def run_offload(
        self, case: OffloadCase, plan: DrillPlan, place: Path, progress: Progress, *, keep: bool
    ) -> OffloadResult:
        """Run one kill of the comparison."""
        return run_offload_case(case, plan, self.settings, place, progress, keep=keep)
