//! What outlives the process: the cache, on the disk, so that an agent that starts while no server answers serves at
//! once. See `docs/agent-outage.md` for what is stored, how it is protected and when it is not used.

pub mod bytes;
mod clock;
pub mod codec;
mod disk;
pub mod frames;
pub mod head;
mod keeper;
mod machine;
mod mirror;
mod restore;

pub use clock::{ClockGuard, TOLERANCE, behind};
pub use keeper::{Keeper, KeeperOptions, Stored, forget};
pub use machine::{FactDigest, Machine};
pub use restore::Restored;

#[cfg(test)]
mod tests;
