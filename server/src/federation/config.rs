//! What of federation is configured.

use std::path::PathBuf;
use std::time::Duration;

use svid_core::federation::Relationship;

/// The `federation` section, checked.
#[derive(Clone, Debug, Default)]
pub struct FederationConfig {
    /// Where our own bundle is served; nowhere when absent.
    pub endpoint: Option<EndpointConfig>,
    /// `federates_with`.
    pub relationships: Vec<Relationship>,
}

/// The `bundle_endpoint` section, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Host or address to listen at.
    pub address: String,
    /// Port to listen at.
    pub port: u16,
    /// How often partners should look, to the second.
    pub refresh_hint: Duration,
    /// How the server proves itself.
    pub profile: ServingProfile,
}

/// How the bundle endpoint's server proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingProfile {
    /// With the server's own SVID.
    Spiffe,
    /// With a certificate from files.
    Files(ServingFiles),
}

/// Certificate files and how often they are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingFiles {
    /// The chain in PEM, leaf first.
    pub cert: PathBuf,
    /// The leaf's key in PEM.
    pub key: PathBuf,
    /// Time between two looks.
    pub interval: Duration,
}
