//! Memory that a crowd left behind goes back to the machine.
//!
//! The allocator keeps what thousands of connections had, in case they come again. A minute later they have not.

#[cfg(target_env = "gnu")]
use std::time::Duration;

/// How often the allocator is asked.
#[cfg(target_env = "gnu")]
const EVERY: Duration = Duration::from_secs(60);
/// Less than this is not worth the walk through the heap, which holds up who allocates meanwhile.
#[cfg(target_env = "gnu")]
const WORTH_IT: usize = 32 << 20;

/// Gives unused memory back, now and then, for as long as it is polled.
#[cfg(target_env = "gnu")]
pub async fn give_back() {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Unused memory counts as such after it was given back, until it is used again.
    let mut given_back = 0;
    loop {
        ticks.tick().await;
        let unused = unused();
        if unused > given_back + WORTH_IT {
            // The walk through the heap is no work for a thread that serves.
            let _ = tokio::task::spawn_blocking(trim).await;
            given_back = unused;
            tracing::debug!(bytes = unused, "Gave unused memory back");
        }
        given_back = given_back.min(unused);
    }
}

/// Other C libraries give memory back by themselves, or not at all.
#[cfg(not(target_env = "gnu"))]
pub async fn give_back() {
    std::future::pending().await
}

/// Bytes that the allocator holds and nobody uses.
#[cfg(target_env = "gnu")]
fn unused() -> usize {
    // SAFETY: takes no arguments and returns numbers; glibc locks its arenas meanwhile.
    unsafe { libc::mallinfo2() }.fordblks
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: may be called at any time from any thread; what is in use stays where it is.
    unsafe { libc::malloc_trim(0) };
}
