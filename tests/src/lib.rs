//! What the whole-system scenarios stand on: real binaries in fresh directories, on free ports, speaking public interfaces.
//!
//! Everything started here ends when its handle is dropped, and nothing waits by sleeping: logs are read as they are written.

pub mod agent;
pub mod aws;
pub mod bao;
pub mod caller;
pub mod calls;
pub mod client;
pub mod envoy;
pub mod lint;
pub mod mtls;
pub mod netns;
pub mod partner;
pub mod pki;
pub use svid_test_postgres as postgres;
pub mod process;
pub mod proxy;
pub mod server;
pub mod x509pop;

pub use agent::{Agent, AgentOptions};
pub use caller::Caller;
pub use calls::until;
pub use process::Process;
pub use server::{Server, ServerOptions};

/// The trust domain of every scenario that does not say otherwise.
pub const TRUST_DOMAIN: &str = "example.org";

/// Longest time that anything awaited may take on a loaded machine with two cores.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Installs the crypto provider; every test calls it first, through the builders or by hand.
pub fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

/// A TCP port of the loopback address that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("bound").port()
}

/// True if foreign clients (Envoy, Python, Go) are to run: `./test` says so. Prints what is left out otherwise.
pub fn interop(what: &str) -> bool {
    let on = std::env::var_os("SVID_TEST_INTEROP").is_some();
    if !on {
        println!("skipped: {what}; run ./test without --quick");
    }
    on
}

/// True if this test runs as root, which it needs for `what`. Prints what is left out otherwise.
pub fn root(what: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("skipped: {what}; run as root");
    }
    is_root
}
