//! Wiring: builds the parts and runs them until told to stop.
