//! Renewal of the agent's own SVID.
