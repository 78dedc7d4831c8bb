//! The `experimental` block of the agent section.

use std::path::PathBuf;
use std::time::Duration;

use svid_core::hcl::{Reader, Unknown};

use super::types::RateLimits;

const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(5);
const MIN_JWT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_JWT_TIMEOUT: Duration = Duration::from_secs(30);
/// The developer flags SPIRE knows.
const FLAGS: [&str; 2] = ["i_am_a_test_flag", "wit-svid"];

pub(super) struct Experimental {
    pub(super) sync_interval: Duration,
    pub(super) jwt_svid_cache_hit_timeout: Duration,
    pub(super) use_sync_authorized_entries: bool,
    pub(super) require_pq_kem: bool,
    pub(super) ratelimit: RateLimits,
    pub(super) persist_svids: bool,
    pub(super) machine_id_path: Option<PathBuf>,
}

impl Default for Experimental {
    fn default() -> Self {
        Self {
            sync_interval: DEFAULT_SYNC_INTERVAL,
            jwt_svid_cache_hit_timeout: DEFAULT_JWT_TIMEOUT,
            use_sync_authorized_entries: true,
            require_pq_kem: false,
            ratelimit: RateLimits::default(),
            persist_svids: true,
            machine_id_path: None,
        }
    }
}

pub(super) fn read(agent: &mut Reader, unknown: Unknown) -> Experimental {
    if agent.has("experimental") {
        agent.warn("experimental", "Experimental features have been enabled. Please see doc/upgrading.md for upgrade and compatibility considerations for experimental features.");
    }
    agent.block("experimental", |block| read_block(block, unknown)).unwrap_or_default()
}

fn read_block(block: &mut Reader, unknown: Unknown) -> Experimental {
    let ratelimit = block.block("ratelimit", |block| ratelimit(block, unknown)).unwrap_or_default();
    if block.has("use_sync_authorized_entries") {
        block.warn("use_sync_authorized_entries", "The 'use_sync_authorized_entries' configuration is deprecated. The option to disable it will be removed in SPIRE 1.13.");
    }
    let sync_interval = block.duration("sync_interval").unwrap_or(DEFAULT_SYNC_INTERVAL);
    let sync_interval = if sync_interval.is_zero() { DEFAULT_SYNC_INTERVAL } else { sync_interval };
    let experimental = Experimental {
        sync_interval,
        jwt_svid_cache_hit_timeout: jwt_timeout(block),
        use_sync_authorized_entries: block.bool("use_sync_authorized_entries").unwrap_or(true),
        require_pq_kem: block.bool("require_pq_kem").unwrap_or_default(),
        ratelimit,
        persist_svids: block.bool("persist_svids").unwrap_or(true),
        machine_id_path: block.string("machine_id_path").filter(|path| !path.is_empty()).map(PathBuf::from),
    };
    for flag in block.strings("feature_flags").unwrap_or_default() {
        if FLAGS.contains(&flag.as_str()) {
            block.warn("feature_flags", format!("Developer feature flag {flag:?} has been enabled"));
        } else {
            block.error("feature_flags", format!("unknown feature flag: {flag}"));
        }
    }
    block.ignored(&["named_pipe_name", "admin_named_pipe_name"], "named pipes exist on Windows only");
    block.ignored(&["broker"], "the Broker API is not built");
    // SPIRE does not look for unknown keys here.
    block.finish(Unknown::Warn);
    experimental
}

fn jwt_timeout(block: &mut Reader) -> Duration {
    const KEY: &str = "jwt_svid_cache_hit_timeout";
    let Some(timeout) = block.duration(KEY) else { return DEFAULT_JWT_TIMEOUT };
    if timeout < MIN_JWT_TIMEOUT {
        block.error(KEY, format!("{KEY} ({timeout:?}) must be greater than 5s"));
    }
    if timeout >= DEFAULT_JWT_TIMEOUT {
        block.error(KEY, format!("{KEY} ({timeout:?}) must be less than 30s"));
    }
    timeout
}

fn ratelimit(block: &mut Reader, unknown: Unknown) -> RateLimits {
    let limits = RateLimits {
        fetch_x509_svid: limit(block, "fetch_x509_svid"),
        fetch_jwt_svid: limit(block, "fetch_jwt_svid"),
        fetch_x509_bundles: limit(block, "fetch_x509_bundles"),
        fetch_jwt_bundles: limit(block, "fetch_jwt_bundles"),
        stream_secrets: limit(block, "stream_secrets"),
        fetch_secrets: limit(block, "fetch_secrets"),
    };
    block.finish(unknown);
    limits
}

fn limit(block: &mut Reader, key: &str) -> u32 {
    let value = block.int(key).unwrap_or_default();
    if value < 0 {
        block.error(key, format!("experimental.ratelimit.{key} must not be negative"));
    }
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}
