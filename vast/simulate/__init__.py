"""The supervisor in a simulated world: seeded faults, a clock that jumps from event to event, invariants that must hold."""
